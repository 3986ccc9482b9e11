//! Root, passwordless sudo, or one sentence that says what to type.

use std::ffi::OsStr;

use anyhow::{Result, bail};

use crate::command::{Cmd, find_program};

/// How this process can do what only root may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privilege {
    Root,
    Sudo,
    None,
}

impl Privilege {
    pub(crate) fn find() -> Self {
        if nix::unistd::geteuid().is_root() {
            Self::Root
        } else if find_program("sudo").is_some() && Cmd::new("sudo").args(["-n", "true"]).succeeds() {
            Self::Sudo
        } else {
            Self::None
        }
    }

    /// Finds it, and fails at once where there is none: before minutes of building, not after them.
    ///
    /// # Errors
    /// This user is neither root nor allowed to sudo without a password; `why` completes "root is needed ...".
    pub(crate) fn require(why: &str) -> Result<Self> {
        let privilege = Self::find();
        privilege.command("true", why)?;
        Ok(privilege)
    }

    /// The program as root's, keeping our environment; `why` completes "root is needed ...".
    pub(crate) fn command(self, program: impl AsRef<OsStr>, why: &str) -> Result<Cmd> {
        match self {
            Self::Root => Ok(Cmd::new(program)),
            Self::Sudo => {
                let mut sudo = Cmd::new("sudo");
                sudo.args(["-n", "-E", "--"]).arg(program);
                Ok(sudo)
            }
            Self::None => bail!(
                "root is needed {why}: run this as root, or as a user whose `sudo -n true` works \
                 (`sudo -v` first gives a while of that)"
            ),
        }
    }
}
