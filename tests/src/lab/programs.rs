//! XDP programs of the lab's own, on its hosts and bridge ports. Each stays until the returned value is dropped.

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader,
    programs::{Xdp, XdpMode},
};

use super::{namespace::run_in, places::bpf_object};

/// Lets every frame pass at a bridge port: a veth device hands the frames of `XDP_TX` and `XDP_REDIRECT` over only to a
/// peer that runs an XDP program too.
pub(super) fn pass(namespace: &str, interface: &str) -> Result<Ebpf> {
    attach(namespace, interface, "xdp-pass.o", "xdp_pass", None)
}

/// Strips one outer IP header from every frame that has one.
pub(super) fn decapsulate(namespace: &str, interface: &str) -> Result<Ebpf> {
    attach(namespace, interface, "lab-xdp.o", "decapsulate", None)
}

/// Sends every frame out of another interface, by its index.
pub(super) fn hand_over(namespace: &str, interface: &str, to: u32) -> Result<Ebpf> {
    attach(namespace, interface, "lab-xdp.o", "hand_over", Some(to))
}

fn attach(namespace: &str, interface: &str, object: &str, name: &str, to: Option<u32>) -> Result<Ebpf> {
    let path = bpf_object(object)?;
    run_in(namespace, || {
        let mut loader = EbpfLoader::new();
        if let Some(to) = &to {
            loader.override_global("TO", to, true);
        }
        let mut ebpf = loader.load_file(&path).with_context(|| format!("cannot load {}", path.display()))?;
        let program = ebpf.program_mut(name).with_context(|| format!("{object} has no program {name}"))?;
        let program: &mut Xdp = program.try_into()?;
        program.load().with_context(|| format!("the kernel refuses {name}"))?;
        program
            .attach(interface, XdpMode::Driver)
            .with_context(|| format!("cannot attach {name} to {interface}"))?;
        Ok(ebpf)
    })?
}
