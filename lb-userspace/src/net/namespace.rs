//! Looking around in the network namespace of another process.

use std::fs::{File, metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;

use nix::sched::{CloneFlags, setns};

/// This thread's own namespace: the process's as a whole may be another.
const OWN: &str = "/proc/thread-self/ns/net";

/// The calling thread is in another network namespace, until this is dropped. What it starts meanwhile is there, too.
#[derive(Debug)]
pub struct Inside {
    home: File,
}

/// Takes the calling thread into the network namespace of a process; none if it is there already.
///
/// # Errors
/// The kernel's: there is no such process, or the caller may not (it takes `CAP_SYS_ADMIN`).
pub fn enter(process: u64) -> io::Result<Option<Inside>> {
    let theirs = File::open(format!("/proc/{process}/ns/net"))?;
    let (there, here) = (theirs.metadata()?, metadata(OWN)?);
    if (there.dev(), there.ino()) == (here.dev(), here.ino()) {
        return Ok(None);
    }
    let home = File::open(OWN)?;
    setns(&theirs, CloneFlags::CLONE_NEWNET)?;
    Ok(Some(Inside { home }))
}

impl Drop for Inside {
    fn drop(&mut self) {
        // The way home was open a moment ago; should it fail, the thread stays where it only looks around.
        let _ = setns(&self.home, CloneFlags::CLONE_NEWNET);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::read_link;
    use std::sync::mpsc;
    use std::thread;

    use nix::sched::unshare;
    use nix::unistd::gettid;

    use super::*;

    #[test]
    fn a_thread_goes_to_another_processes_network_and_comes_home() {
        let (tell, told) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        // A thread has an entry in /proc as a process has.
        let other = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tell.send((gettid().as_raw(), read_link(OWN).unwrap())).unwrap();
            let _ = ended.recv();
        });
        let (process, there) = told.recv().unwrap();
        let home = read_link(OWN).unwrap();
        assert_ne!(home, there);
        let inside = enter(u64::try_from(process).unwrap()).unwrap().expect("it is another");
        assert_eq!(read_link(OWN).unwrap(), there);
        assert!(enter(u64::try_from(process).unwrap()).unwrap().is_none(), "it is there already");
        drop(inside);
        assert_eq!(read_link(OWN).unwrap(), home);
        drop(end);
        other.join().unwrap();
        // No process has ever had this number: the largest is 4,194,304.
        assert_eq!(enter(4_194_305).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
