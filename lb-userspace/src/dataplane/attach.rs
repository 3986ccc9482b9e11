//! Attaching the program to its interface: for the first time, or by adopting the link that is there.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
};

use anyhow::{Context as _, bail, ensure};
use aya::{Ebpf, programs::ProgramInfo};
use lb_common::maps::{self, Users};
use tracing::warn;

use super::{
    bpf::{self, AttachFlags, LinkInfo, OpenFor},
    host::{self, Interface},
    load::{Attached, remove},
    pinned::{self, Access, Pins},
    program::{self, Mode},
};
use crate::{
    config::XdpMode,
    object::{CLOCK_PROGRAM, PROGRAM},
};

/// Never forces: whoever put another program there knows why.
pub(super) fn refuse_foreign(pins: &Pins, target: &Interface) -> anyhow::Result<()> {
    let Some((id, _)) = target.program else { return Ok(()) };
    match pinned_link(pins, target)? {
        Some(_) => Ok(()),
        None => Err(foreign(target, Some(id))),
    }
}

fn foreign(target: &Interface, id: Option<u32>) -> anyhow::Error {
    let name = &target.name;
    let who = id.map_or_else(|| "an XDP program".to_owned(), program::describe);
    anyhow::anyhow!(
        "another XDP {who} is on {name}, and there can be one: remove it with what attached it \
         (`ip link set dev {name} xdp off` if that was ip), or use another interface"
    )
}

/// The pinned link of this interface, by the interface itself: it may have been renamed since.
pub(super) fn pinned_link(pins: &Pins, target: &Interface) -> anyhow::Result<Option<(OwnedFd, LinkInfo)>> {
    for name in program::link_pins(pins)? {
        let path = pins.link(&name);
        let context = || format!("cannot ask about {}", path.display());
        let link = bpf::open(&path, OpenFor::Everything).with_context(context)?;
        let info = bpf::link_info(&link).with_context(context)?;
        let is_here =
            info.interface == target.index && target.program.is_some_and(|(id, _)| id == info.program);
        if is_here {
            if name != target.name {
                fs::rename(&path, pins.link(&target.name)).with_context(|| {
                    format!("{name} is called {} now, and its link can't be renamed", target.name)
                })?;
            }
            return Ok(Some((link, info)));
        }
        if name == target.name && info.interface == 0 {
            // The interface that it was attached to is gone; this is another of that name.
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        } else if name == target.name {
            bail!(
                "{} is attached to interface number {} in this or another network namespace, and {name} here is \
                 number {}: start where it was started, use another --pin-dir, or take it off with `steadfastd detach`",
                path.display(),
                info.interface,
                target.index
            );
        }
    }
    Ok(None)
}

/// Keeps the running program if it is of this build and uses these maps; else puts ours into its link.
pub(super) fn adopt(pins: &Pins, object: &mut Ebpf, link: &OwnedFd, running: u32) -> anyhow::Result<bool> {
    let program = program::xdp(object, PROGRAM)?;
    let ours = program.info()?;
    let fd = program.fd()?.try_clone()?;
    let pinned = ProgramInfo::from_pin(pins.program(PROGRAM)).ok();
    let is_pinned = pinned.is_some_and(|pinned| pinned.id() == running);
    let clock_is_pinned = pins.program(CLOCK_PROGRAM).exists();
    let same = match program::by_id(running) {
        Some(running) => running.tag() == ours.tag() && same_maps(pins, &running, &ours)?,
        None => false,
    };
    if same && is_pinned && clock_is_pinned {
        return Ok(false);
    }
    pin_programs(pins, object)?;
    bpf::replace(link, &fd).context("cannot put the new program into the link of the running one")?;
    Ok(true)
}

/// Whether the running program uses the pinned maps, as ours does: someone may have removed pins from under it.
fn same_maps(pins: &Pins, running: &ProgramInfo, ours: &ProgramInfo) -> anyhow::Result<bool> {
    let (running, ours) = (running.map_ids()?.unwrap_or_default(), ours.map_ids()?.unwrap_or_default());
    for spec in maps::ALL.iter().filter(|spec| spec.users == Users::Both) {
        let id = pinned::open_map(pins, spec, Access::ReadOnly)?.info()?.id();
        if ours.contains(&id) && !running.contains(&id) {
            return Ok(false);
        }
    }
    Ok(true)
}

pub(super) fn adopted(target: &Interface, info: LinkInfo, wanted: XdpMode) -> anyhow::Result<Attached> {
    let (_, mode) = target.program.context("an adopted program is on its interface")?;
    let note = match (wanted, mode) {
        (XdpMode::Native, Mode::Generic) | (XdpMode::Generic, Mode::Native) => Some(format!(
            "the program on {} stays {}, as it was attached: changing that ends all sessions (`steadfastd detach`, \
             then start)",
            target.name,
            if mode == Mode::Native { "native" } else { "generic" }
        )),
        _ => None,
    };
    if let Some(note) = &note {
        warn!("{note}");
    }
    Ok(Attached {
        interface: target.name.clone(),
        index: target.index,
        program: info.program,
        link: info.id,
        mode,
        note,
    })
}

/// Pins both programs in place of what was pinned.
pub(super) fn pin_programs(pins: &Pins, object: &mut Ebpf) -> anyhow::Result<()> {
    for name in [PROGRAM, CLOCK_PROGRAM] {
        let path = pins.program(name);
        let fresh = pins.program(&format!("{name}_new"));
        let context = || format!("cannot pin the program as {}", path.display());
        remove(&fresh).with_context(context)?;
        bpf::pin(program::xdp(object, name)?.fd()?, &fresh).with_context(context)?;
        fs::rename(&fresh, &path).with_context(context)?;
    }
    Ok(())
}

/// Attaches as the configuration says, and pins the link.
pub(super) fn attach_pinned(
    pins: &Pins,
    program: impl AsFd,
    target: &Interface,
    mode: XdpMode,
) -> anyhow::Result<Attached> {
    let (link, mode, note) = attach(program, target, mode)?;
    let path = pins.link(&target.name);
    bpf::pin(&link, &path).with_context(|| format!("cannot pin the link as {}", path.display()))?;
    let info = bpf::link_info(&link).context("cannot ask about the link")?;
    Ok(Attached {
        interface: target.name.clone(),
        index: target.index,
        program: info.program,
        link: info.id,
        mode,
        note,
    })
}

/// Attaches as the configuration says: the link, how it runs, and why not otherwise.
fn attach(
    program: impl AsFd,
    target: &Interface,
    mode: XdpMode,
) -> anyhow::Result<(OwnedFd, Mode, Option<String>)> {
    let name = &target.name;
    let mut note = None;
    if mode != XdpMode::Generic {
        match bpf::attach(program.as_fd(), target.index, AttachFlags::Native) {
            Ok(link) => return Ok((link, Mode::Native, None)),
            Err(error) if is_in_the_way(&error) => return Err(foreign_now(target)),
            Err(error) => {
                let reason = native_refusal(target, &error);
                ensure!(
                    mode == XdpMode::Auto,
                    "{reason}; set node.xdp_mode to auto or generic to run without the driver"
                );
                let fallback = format!("{reason}: the program runs generic, which takes more of the CPU");
                warn!("{fallback}");
                note = Some(fallback);
            }
        }
    }
    match bpf::attach(program.as_fd(), target.index, AttachFlags::Generic) {
        Ok(link) => Ok((link, Mode::Generic, note)),
        Err(error) if is_in_the_way(&error) => Err(foreign_now(target)),
        Err(error) => Err(error).with_context(|| {
            format!("{name} does not take the program, not even generic (an interface with LRO does not: `ethtool -K {name} lro off`)")
        }),
    }
}

fn is_in_the_way(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST))
}

/// Someone was quicker than this start.
fn foreign_now(target: &Interface) -> anyhow::Error {
    let now = host::interface(&target.name).ok();
    foreign(target, now.and_then(|now| now.program).map(|(id, _)| id))
}

fn native_refusal(target: &Interface, error: &io::Error) -> String {
    let name = &target.name;
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => format!("the driver of {name} has no native XDP"),
        Some(libc::ERANGE | libc::EINVAL | libc::EMSGSIZE | libc::E2BIG) => format!(
            "the driver of {name} refuses native XDP ({error}): most often it takes no frames in several buffers, and its own \
             MTU ({}) or that of a veth's peer must be 3,498 or less",
            target.mtu
        ),
        // What veth says.
        Some(libc::ENOSPC) => format!(
            "the driver of {name} refuses native XDP: it has fewer receive queues than its peer has transmit queues \
             (`ethtool -L` changes that)"
        ),
        _ => format!("the driver of {name} refuses native XDP ({error})"),
    }
}
