//! What the kernel itself says of the balancer, whatever the balancer says.

use std::{
    collections::BTreeSet,
    ffi::CString,
    fs,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf,
    programs::{Xdp, XdpMode, loaded_links, loaded_programs},
};
use serde_json::Value;

use super::wait::until;
use crate::lab::{INTERFACE, Lab, Ns, bpf_object};

const SETTLES_WITHIN: Duration = Duration::from_secs(60);

/// The program on an interface, and the link that holds it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The program's id.
    pub program: u32,
    /// The link's id.
    pub link: u32,
}

/// The program on the interface of a namespace: none if there is none.
///
/// # Errors
/// `ip` failed.
pub fn xdp_on(lab: &Lab, ns: Ns, interface: &str) -> Result<Option<u32>> {
    let shown = ip_json(lab, ns, &["-d", "link", "show", interface])?;
    let program = &shown[0]["xdp"]["prog"]["id"];
    match program {
        Value::Null => Ok(None),
        id => Ok(Some(u32::try_from(id.as_u64().context("ip shows no number of the program")?)?)),
    }
}

/// The program on the balancer's interface and its link.
///
/// # Errors
/// There is none, or no link holds it.
pub fn attached(lab: &Lab) -> Result<Attached> {
    let program = xdp_on(lab, Ns::Lb, INTERFACE)?.context("no XDP program is on the balancer's interface")?;
    for link in loaded_links() {
        // A link of someone else's may be gone by the time it is looked at.
        let Ok(link) = link else { continue };
        if link.program_id() == program {
            return Ok(Attached { program, link: link.id() });
        }
    }
    bail!("no link holds program {program}")
}

/// Whether a program of this id is loaded.
pub fn is_loaded(program: u32) -> bool {
    loaded_programs().flatten().any(|info| info.id() == program)
}

/// Puts a program that is not the balancer's on one of its host's interfaces, until the returned value is dropped.
///
/// # Errors
/// The object is not built, or another program is there.
pub fn attach_foreign(lab: &Lab, interface: &str) -> Result<Ebpf> {
    let object = bpf_object("xdp-pass.o")?;
    lab.in_ns(Ns::Lb, || {
        let mut ebpf = Ebpf::load_file(&object)?;
        let program: &mut Xdp =
            ebpf.program_mut("xdp_pass").context("the object has no program xdp_pass")?.try_into()?;
        program.load()?;
        program.attach(interface, XdpMode::Driver)?;
        Ok(ebpf)
    })?
}

/// Takes the balancer's program off its interfaces behind its back, as `bpftool link detach` does: a daemon that runs holds
/// the link, so that removing the pin is not enough.
///
/// # Errors
/// No link is pinned, or the kernel does not detach it.
pub fn take_off(lab: &Lab) -> Result<()> {
    let links = fs::read_dir(lab.places().pins.join("links")).context("no link is pinned")?;
    for link in links.collect::<Result<Vec<_>, _>>()? {
        let path = link.path();
        let pinned = open_pin(&path).with_context(|| format!("{} does not open", path.display()))?;
        fs::remove_file(&path).with_context(|| format!("{} stays", path.display()))?;
        let number = u64::from(pinned.as_raw_fd().unsigned_abs());
        bpf(BPF_LINK_DETACH, [number, 0]).with_context(|| format!("{} stays attached", path.display()))?;
    }
    Ok(())
}

/// Commands of bpf(2) (include/uapi/linux/bpf.h).
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_LINK_DETACH: libc::c_long = 34;

fn open_pin(path: &Path) -> Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    let number = bpf(BPF_OBJ_GET, [path.as_ptr().expose_provenance() as u64, 0])?;
    // SAFETY: the kernel has just made the descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// `attributes` are the first 16 bytes of the command's part of `union bpf_attr`, in the machine's byte order.
fn bpf(command: libc::c_long, attributes: [u64; 2]) -> Result<i32> {
    // SAFETY: the kernel reads the 16 bytes and, of BPF_OBJ_GET, the path that the caller keeps until then.
    let code =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(&attributes)) };
    if code < 0 {
        return Err(std::io::Error::last_os_error()).context("bpf(2)");
    }
    Ok(i32::try_from(code)?)
}

/// What `ip -j` says in a namespace.
///
/// # Errors
/// It failed.
pub fn ip_json(lab: &Lab, ns: Ns, args: &[&str]) -> Result<Value> {
    let args: Vec<&str> = ["-j"].into_iter().chain(args.iter().copied()).collect();
    let output = lab.command(ns, "ip", &args).output().context("cannot start ip")?;
    if !output.status.success() {
        bail!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim_end());
    }
    serde_json::from_slice(&output.stdout).context("ip printed no JSON")
}

/// What a balancer could leave behind on its host: addresses, links, routes, rules, firewall, what listens, sysctls.
///
/// # Errors
/// A tool failed, or the host's own IPv6 addresses are still tentative after some seconds.
pub fn host_state(lab: &Lab) -> Result<BTreeSet<String>> {
    let mut state = BTreeSet::new();
    until("duplicate address detection is over", SETTLES_WITHIN, || {
        let shown = ip_json(lab, Ns::Lb, &["addr", "show"])?;
        Ok((!shown.to_string().contains("tentative")).then_some(()))
    })?;
    for args in [
        &["addr", "show"][..],
        &["-d", "link", "show"],
        &["route", "show", "table", "all"],
        &["rule", "show"],
    ] {
        let shown = ip_json(lab, Ns::Lb, args)?;
        for item in shown.as_array().into_iter().flatten() {
            state.insert(format!("ip {}: {item}", args.join(" ")));
        }
    }
    let ss = lab.command(Ns::Lb, "ss", ["-Hltun"]).output()?;
    for line in String::from_utf8_lossy(&ss.stdout).lines() {
        state.insert(format!("listens: {line}"));
    }
    let nft = lab.command(Ns::Lb, "nft", ["list", "ruleset"]).output().context("cannot start nft")?;
    for line in String::from_utf8_lossy(&nft.stdout).lines() {
        state.insert(format!("nft: {line}"));
    }
    let sysctls = lab.in_ns(Ns::Lb, || sysctls(Path::new("/proc/sys/net/ipv4")))??;
    state.extend(sysctls);
    Ok(state)
}

fn sysctls(dir: &Path) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            all.extend(sysctls(&path)?);
        } else if let Ok(value) = fs::read_to_string(&path) {
            all.push(format!("{}: {}", path.display(), value.trim_end()));
        }
    }
    Ok(all)
}
