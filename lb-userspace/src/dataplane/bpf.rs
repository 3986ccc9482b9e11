//! The bpf(2) commands that are needed beside what aya offers. Every call is one system call on a `repr(C)` part of
//! `union bpf_attr` (include/uapi/linux/bpf.h); sizes and commands are the kernel's ABI.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// `enum bpf_cmd`.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Command {
    MapCreate = 0,
    MapDelete = 3,
    ObjPin = 6,
    ObjGet = 7,
    ProgTestRun = 10,
    ObjGetInfo = 15,
    MapLookupBatch = 24,
    MapUpdateBatch = 26,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// What may be passed to the kernel: plain integers without padding, zeros allowed.
///
/// # Safety
/// `repr(C)`, no padding, and every address in it is valid for what the command does with it.
unsafe trait Attributes {}

fn call<A: Attributes>(command: Command, attributes: &mut A) -> io::Result<i64> {
    // SAFETY: the attributes are valid for reading and writing over their size, and what they point at is
    // the business of `Attributes`.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command as u32, &raw mut *attributes, size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn call_for_fd<A: Attributes>(command: Command, attributes: &mut A) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(call(command, attributes)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us alone; all of bpf(2)'s are close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn length(of: usize) -> io::Result<u32> {
    u32::try_from(of).map_err(io::Error::other)
}

fn address<T>(of: &T) -> u64 {
    (&raw const *of).addr() as u64
}

/// How a pinned object is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OpenFor {
    Everything = 0,
    /// `BPF_F_RDONLY`: the kernel refuses writes, through the descriptor and through mappings of it.
    Reading = 8,
}

#[repr(C)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}
// SAFETY: 16 bytes; the path is a C string that outlives the call.
unsafe impl Attributes for Object {}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Opens a pinned object.
pub(super) fn open(path: &Path, open: OpenFor) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let flags = open as u32;
    call_for_fd(Command::ObjGet, &mut Object { path: path.as_ptr().addr() as u64, fd: 0, flags })
}

/// Pins an object; the path must be free.
pub(super) fn pin(object: impl AsFd, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let fd = number(object.as_fd());
    let mut attributes = Object { path: path.as_ptr().addr() as u64, fd, flags: 0 };
    call(Command::ObjPin, &mut attributes).map(drop)
}

#[repr(C)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_map: u32,
    numa_node: u32,
    name: [u8; 16],
}
// SAFETY: 44 bytes, no addresses.
unsafe impl Attributes for MapCreate {}

/// Creates a `BPF_MAP_TYPE_ARRAY` with 4-byte keys. The kernel keeps 15 bytes of the name.
pub(super) fn create_array(name: &str, value_size: u32, max_entries: u32, flags: u32) -> io::Result<OwnedFd> {
    const ARRAY: u32 = 2;
    let mut short = [0; 16];
    for (to, from) in short.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    let mut attributes = MapCreate {
        kind: ARRAY,
        key_size: 4,
        value_size,
        max_entries,
        flags,
        inner_map: 0,
        numa_node: 0,
        name: short,
    };
    call_for_fd(Command::MapCreate, &mut attributes)
}

#[repr(C)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}
// SAFETY: 32 bytes; the key is four bytes that outlive the call, and there is no value.
unsafe impl Attributes for Element {}

/// Deletes an element; of an array of maps that is its inner map.
pub(super) fn delete(map: impl AsFd, key: u32) -> io::Result<()> {
    let mut attributes =
        Element { map: number(map.as_fd()), padding: 0, key: address(&key), value: 0, flags: 0 };
    call(Command::MapDelete, &mut attributes).map(drop)
}

#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}
// SAFETY: 56 bytes; keys and values have `count` elements, which the callers see to.
unsafe impl Attributes for Batch {}

/// Writes an array's elements from the first one on. The map's values must be 8 bytes.
pub(super) fn write_all(map: impl AsFd, values: &[u64]) -> io::Result<()> {
    let keys: Vec<u32> = (0..length(values.len())?).collect();
    update(map, &keys, values)
}

/// Puts maps into a map of maps, all in one call: before Linux 6.8 the kernel waits for running programs after each, since then
/// after the last.
pub(super) fn insert_maps(map: impl AsFd, entries: &[(u32, BorrowedFd<'_>)]) -> io::Result<()> {
    let (keys, values): (Vec<u32>, Vec<u32>) =
        entries.iter().map(|(key, inner)| (*key, number(*inner))).unzip();
    update(map, &keys, &values)
}

/// Writes elements of a map whose keys are 4 bytes and whose values are `V`.
fn update<V>(map: impl AsFd, keys: &[u32], values: &[V]) -> io::Result<()> {
    let count = length(keys.len().min(values.len()))?;
    let mut attributes = Batch {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr().addr() as u64,
        values: values.as_ptr().addr() as u64,
        count,
        map: number(map.as_fd()),
        element_flags: 0,
        flags: 0,
    };
    call(Command::MapUpdateBatch, &mut attributes)?;
    if attributes.count == count {
        Ok(())
    } else {
        Err(io::Error::other(format!("only {} of {count} values were written", attributes.count)))
    }
}

/// Reads an array's first `count` elements. The map's values must be 8 bytes.
pub(super) fn read_all(map: impl AsFd, count: u32) -> io::Result<Vec<u64>> {
    let mut keys = vec![0u32; count as usize];
    let mut values = vec![0u64; count as usize];
    let mut next = 0u32;
    let mut attributes = Batch {
        in_batch: 0,
        out_batch: (&raw mut next).addr() as u64,
        keys: keys.as_mut_ptr().expose_provenance() as u64,
        values: values.as_mut_ptr().expose_provenance() as u64,
        count,
        map: number(map.as_fd()),
        element_flags: 0,
        flags: 0,
    };
    match call(Command::MapLookupBatch, &mut attributes) {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
        // ENOENT says that the map ends here.
        _ => {}
    }
    if attributes.count == count {
        Ok(values)
    } else {
        Err(io::Error::other(format!("only {} of {count} values were read", attributes.count)))
    }
}

#[repr(C)]
struct TestRun {
    program: u32,
    result: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
}
// SAFETY: 64 bytes; the data are two buffers of the sizes given, which outlive the call.
unsafe impl Attributes for TestRun {}

/// Runs an XDP program once on a packet of 64 zeros: its result, and the packet as it left it.
pub(super) fn test_run(program: impl AsFd) -> io::Result<(u32, [u8; 64])> {
    let packet = [0u8; 64];
    let mut out = [0u8; 64];
    let mut attributes = TestRun {
        program: number(program.as_fd()),
        result: 0,
        size_in: 64,
        size_out: 64,
        data_in: address(&packet),
        data_out: (&raw mut out).expose_provenance() as u64,
        repeat: 1,
        duration: 0,
        context_size_in: 0,
        context_size_out: 0,
        context_in: 0,
        context_out: 0,
    };
    call(Command::ProgTestRun, &mut attributes)?;
    Ok((attributes.result, out))
}

/// A link, as the kernel describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkInfo {
    /// The link's id.
    pub(super) id: u32,
    /// The id of its program.
    pub(super) program: u32,
    /// The number of the interface; zero if that interface is gone.
    pub(super) interface: u32,
}

#[repr(C)]
struct ObjectInfo {
    fd: u32,
    length: u32,
    info: u64,
}
// SAFETY: 16 bytes; the info is a buffer of that length, which outlives the call.
unsafe impl Attributes for ObjectInfo {}

/// What an XDP link is attached to.
pub(super) fn link_info(link: impl AsFd) -> io::Result<LinkInfo> {
    /// `BPF_LINK_TYPE_XDP`.
    const XDP: u32 = 6;
    // struct bpf_link_info: type, id, prog_id, padding, then a union whose first word is an XDP link's ifindex.
    let mut info = [0u32; 16];
    let mut attributes = ObjectInfo {
        fd: number(link.as_fd()),
        length: length(size_of_val(&info))?,
        info: (&raw mut info).expose_provenance() as u64,
    };
    call(Command::ObjGetInfo, &mut attributes)?;
    if info[0] != XDP {
        return Err(io::Error::other("it is not an XDP link"));
    }
    Ok(LinkInfo { id: info[1], program: info[2], interface: info[4] })
}

/// `XDP_FLAGS_*`: where the program is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AttachFlags {
    Generic = 2,
    Native = 4,
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
}
// SAFETY: 16 bytes, no addresses.
unsafe impl Attributes for LinkCreate {}

/// Attaches an XDP program. The kernel refuses (`EBUSY`, `EEXIST`) where another one is.
pub(super) fn attach(program: impl AsFd, interface: u32, flags: AttachFlags) -> io::Result<OwnedFd> {
    /// `BPF_XDP`.
    const XDP: u32 = 37;
    let mut attributes =
        LinkCreate { program: number(program.as_fd()), interface, attach_type: XDP, flags: flags as u32 };
    call_for_fd(Command::LinkCreate, &mut attributes)
}

#[repr(C)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}
// SAFETY: 16 bytes, no addresses.
unsafe impl Attributes for LinkUpdate {}

/// Puts another program into a link, between two packets.
pub(super) fn replace(link: impl AsFd, program: impl AsFd) -> io::Result<()> {
    let mut attributes =
        LinkUpdate { link: number(link.as_fd()), program: number(program.as_fd()), flags: 0, old_program: 0 };
    call(Command::LinkUpdate, &mut attributes).map(drop)
}

#[repr(C)]
struct LinkDetach {
    link: u32,
}
// SAFETY: 4 bytes, no addresses.
unsafe impl Attributes for LinkDetach {}

/// Detaches a link now; unpinning it alone would do so a little later.
pub(super) fn detach(link: impl AsFd) -> io::Result<()> {
    let link = number(link.as_fd());
    call(Command::LinkDetach, &mut LinkDetach { link }).map(drop)
}
