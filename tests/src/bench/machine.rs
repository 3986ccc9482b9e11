//! A machine for BPF instructions that counts them: what a program does for a packet, whatever else the processor does meanwhile.
//!
//! It runs the object's own instructions, as the compiler made them and before the kernel translates them, on the maps that a
//! data path has in the kernel (Documentation/bpf/standardization/instruction-set.rst). What it knows is what the program uses.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "a register has 64 bits, and an instruction says how many of them it takes, and whether they have a sign"
)]

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ffi::c_void,
    num::NonZeroUsize,
    os::fd::AsFd as _,
    path::Path,
    ptr::NonNull,
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{MapData, MapInfo};
use aya_obj::{EbpfSectionKind, Object, generated::bpf_insn};
use lb_common::{
    clock::JIFFIES_SHIFT,
    maps::{self, MapKind},
    word::Word,
};
use lb_userspace::{
    dataplane::{Maps, Region},
    object::{OBJECT, PROGRAM},
};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Bytes of stack of a function.
const FRAME: usize = 512;
/// Functions that call each other.
const DEPTH: usize = 9;
/// Bytes that a packet may grow to, with those in front of it.
const PACKET: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// Words of a `struct xdp_md`.
const CONTEXT_WORDS: usize = 3;
/// Bytes in front of a packet.
const HEADROOM: usize = 256;
/// Bits of a line's number that are the column (Documentation/bpf/btf.rst, `struct bpf_line_info`).
const COLUMN_BITS: u32 = 10;
/// No program of ours takes so many.
const MOST: u32 = 1_000_000;

/// What a map is here: memory of its values, or none.
struct Values {
    memory: Region<Word>,
    size: usize,
    entries: u32,
}

/// Room for a packet, below 4 GiB: the program reads its addresses as words of 32 bits.
struct Low {
    start: NonNull<c_void>,
    bytes: NonZeroUsize,
}

impl Drop for Low {
    fn drop(&mut self) {
        // SAFETY: it is this mapping, whole, and nobody has it any more.
        let _gone = unsafe { munmap(self.start, self.bytes.get()) };
    }
}

impl Low {
    fn new(bytes: NonZeroUsize) -> Result<Self> {
        let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let start =
            unsafe { mmap_anonymous(None, bytes, both, MapFlags::MAP_PRIVATE | MapFlags::MAP_32BIT) }?;
        Ok(Self { start, bytes })
    }

    fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }
}

/// Where memory lies, as the program is told.
fn address(memory: &Region<Word>) -> u64 {
    memory.as_ptr() as u64
}

/// The machine, with a data path's maps.
pub(super) struct Machine {
    instructions: Vec<bpf_insn>,
    /// By the number that stands for a map in the instructions.
    maps: BTreeMap<i32, Values>,
    /// The number of the map of schedulers' tables, and those, by service.
    schedules: (i32, BTreeMap<u32, Region<Word>>),
    packet: Low,
    context: Region<Word>,
    stack: Region<Word>,
    jiffies: u64,
    /// How often each instruction was executed.
    counts: Vec<u64>,
    /// Calls of the kernel's functions, by number.
    helpers: BTreeMap<i32, u64>,
    /// Calls of the program's own functions.
    calls: u64,
    /// Atomic operations.
    atomics: u64,
    /// Source file and line of an instruction, from the first that they hold for.
    lines: BTreeMap<usize, (String, u32)>,
}

/// Registers, and where functions were called, with what is theirs again afterwards.
struct Processor {
    registers: [u64; 11],
    callers: Vec<(usize, [u64; 5])>,
}

/// Jumps that are none.
const CALL: u8 = 8;
const EXIT: u8 = 9;

/// What a packet took.
pub(super) struct Taken {
    /// The program's verdict.
    pub(super) verdict: u32,
    /// The frame as it left it.
    pub(super) frame: Vec<u8>,
    /// Instructions.
    pub(super) instructions: u64,
    /// Look-ups in maps.
    pub(super) lookups: u64,
    /// Other calls of the kernel's functions.
    pub(super) others: u64,
    /// Calls of the program's own functions.
    pub(super) calls: u64,
    /// Atomic operations.
    pub(super) atomics: u64,
    /// Instructions by source file and line.
    pub(super) by_line: BTreeMap<(String, u32), u64>,
}

/// The kernel's functions that the program calls on the ways that are counted here (`enum bpf_func_id`).
const MAP_LOOKUP: i32 = 1;
const ADJUST_HEAD: i32 = 44;
const JIFFIES: i32 = 118;
const FRAME_LENGTH: i32 = 188;

impl Machine {
    /// With the maps of a data path, which are pinned in this directory.
    ///
    /// # Errors
    /// They are not, or are not those of the object.
    pub(super) fn load(pins: &Path, data_path: &Maps) -> Result<Self> {
        let mut object = Object::parse(OBJECT)?;
        patch_masks(&mut object, pins)?;
        let names: BTreeSet<String> = object.maps.keys().cloned().collect();
        let numbered: Vec<(String, i32, aya_obj::Map)> = names
            .into_iter()
            .zip(1..)
            .map(|(name, number)| {
                let map = object.maps[&name].clone();
                (name, number, map)
            })
            .collect();
        let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        let references = numbered.iter().map(|(name, number, map)| (name.as_str(), *number, map));
        object.relocate_maps(references, &sections)?;
        object.relocate_calls(&sections)?;
        let program = object.programs.get(PROGRAM).context("the object has no program")?;
        let function = &object.functions[&program.function_key()];
        let (mut maps, mut schedules) = (BTreeMap::new(), (0, BTreeMap::new()));
        for (name, number, map) in &numbered {
            if *name == maps::SCHEDULE.name {
                schedules = (*number, tables(data_path)?);
            } else if let Some(values) = values(pins, name, map)? {
                maps.insert(*number, values);
            }
        }
        let mut lines = BTreeMap::new();
        if let Some(btf) = &object.btf {
            let btf = btf.to_bytes();
            for line in &function.line_info.line_info {
                let place = (string(&btf, line.file_name_off)?, line.line_col >> COLUMN_BITS);
                lines.insert(usize::try_from(line.insn_off)?, place);
            }
        }
        Ok(Self {
            counts: vec![0; function.instructions.len()],
            instructions: function.instructions.clone(),
            maps,
            schedules,
            packet: Low::new(PACKET)?,
            context: Region::heap(CONTEXT_WORDS),
            stack: Region::heap(FRAME * DEPTH / 8),
            jiffies: u64::from(data_path.now()?.0) << JIFFIES_SHIFT,
            helpers: BTreeMap::new(),
            calls: 0,
            atomics: 0,
            lines,
        })
    }

    /// Runs the program on a frame that came by this interface.
    ///
    /// # Errors
    /// It does something that this machine does not know.
    pub(super) fn run(&mut self, frame: &[u8], interface: u32) -> Result<Taken> {
        self.counts.fill(0);
        self.helpers.clear();
        (self.calls, self.atomics) = (0, 0);
        let start = self.packet.address() + HEADROOM as u64;
        ensure!(frame.len() + HEADROOM <= self.packet.bytes.get(), "a long frame");
        // SAFETY: the packet's memory is ours, and as long.
        unsafe { std::ptr::copy_nonoverlapping(frame.as_ptr(), start as *mut u8, frame.len()) };
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let end = start + frame.len() as u64;
        for (at, word) in (0_u64..).zip([start, end, start, u64::from(interface), 0, 0]) {
            store(address(&self.context) + 4 * at, 4, word);
        }
        let verdict = self.execute()? as u32;
        let [start, end] = [0, 4].map(|at| load(address(&self.context) + at, 4));
        // SAFETY: within the packet's memory: `call` lets the program move the beginning so far and no further.
        let frame =
            unsafe { std::slice::from_raw_parts(start as *const u8, (end - start) as usize) }.to_vec();
        let lookups = self.helpers.get(&MAP_LOOKUP).copied().unwrap_or_default();
        let mut by_line = BTreeMap::new();
        let nowhere = ("?".to_owned(), 0);
        for (at, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let line = self.lines.range(..=at).next_back().map_or(&nowhere, |(_, line)| line);
            *by_line.entry(line.clone()).or_default() += count;
        }
        Ok(Taken {
            verdict,
            frame,
            instructions: self.counts.iter().sum(),
            lookups,
            others: self.helpers.values().sum::<u64>() - lookups,
            calls: self.calls,
            atomics: self.atomics,
            by_line,
        })
    }

    fn execute(&mut self) -> Result<u64> {
        let mut processor = Processor { registers: [0; 11], callers: Vec::new() };
        processor.registers[1] = address(&self.context);
        processor.registers[10] = address(&self.stack) + FRAME as u64;
        let mut at = 0;
        for _ in 0..MOST {
            let instruction = *self.instructions.get(at).context("beyond the program")?;
            self.counts[at] += 1;
            match self.step(&mut processor, at, instruction)? {
                Some(next) => at = next,
                None => return Ok(processor.registers[0]),
            }
        }
        bail!("the program does not end")
    }

    /// Executes an instruction; gives the place of the next, if there is one.
    fn step(&mut self, processor: &mut Processor, at: usize, instruction: bpf_insn) -> Result<Option<usize>> {
        let code = instruction.code;
        let (destination, source) = (usize::from(instruction.dst_reg()), usize::from(instruction.src_reg()));
        let registers = &mut processor.registers;
        let beside = |register: u64| register.wrapping_add_signed(i64::from(instruction.off));
        let value = if code & 8 == 0 { i64::from(instruction.imm) as u64 } else { registers[source] };
        match code & 7 {
            // BPF_LD: a constant of 64 bits, or a map.
            0 => {
                let next = self.instructions.get(at + 1).context("half a constant")?.imm;
                registers[destination] = match source {
                    0 => u64::from(instruction.imm as u32) | u64::from(next as u32) << 32,
                    1 => instruction.imm as u64,
                    2 => address(&self.values(instruction.imm)?.memory) + next as u64,
                    other => bail!("a constant of kind {other}"),
                };
                return Ok(Some(at + 2));
            }
            // BPF_LDX, BPF_ST and BPF_STX.
            1 => registers[destination] = load(beside(registers[source]), width(code)),
            2 => store(beside(registers[destination]), width(code), i64::from(instruction.imm) as u64),
            3 if code & 0xe0 == 0xc0 => {
                self.atomics += 1;
                atomic(beside(registers[destination]), width(code), instruction.imm, source, registers)?;
            }
            3 => store(beside(registers[destination]), width(code), registers[source]),
            4 | 7 => {
                registers[destination] = arithmetic(code, registers[destination], value, &instruction)?;
            }
            _ => return self.jump(processor, at, instruction, value),
        }
        Ok(Some(at + 1))
    }

    /// As [`Machine::step`], of the classes `BPF_JMP` and `BPF_JMP32`.
    fn jump(
        &mut self,
        processor: &mut Processor,
        at: usize,
        instruction: bpf_insn,
        value: u64,
    ) -> Result<Option<usize>> {
        let Processor { registers, callers } = processor;
        let narrow = instruction.code & 7 == 6;
        let by = match instruction.code >> 4 {
            CALL if instruction.src_reg() == 1 => {
                ensure!(callers.len() + 1 < DEPTH, "too many functions call each other");
                self.calls += 1;
                let [.., six, seven, eight, nine, frame] = *registers;
                callers.push((at + 1, [six, seven, eight, nine, frame]));
                registers[10] += FRAME as u64;
                i64::from(instruction.imm)
            }
            CALL => {
                *self.helpers.entry(instruction.imm).or_default() += 1;
                registers[0] = self.call(instruction.imm, [registers[1], registers[2]])?;
                0
            }
            EXIT => {
                let Some((back, saved)) = callers.pop() else { return Ok(None) };
                registers[6..].copy_from_slice(&saved);
                return Ok(Some(back));
            }
            0 if narrow => i64::from(instruction.imm),
            0 => i64::from(instruction.off),
            condition => {
                let jumps = holds(condition, narrow, registers[usize::from(instruction.dst_reg())], value)?;
                if jumps { i64::from(instruction.off) } else { 0 }
            }
        };
        at.checked_add_signed(by as isize + 1).context("a jump out of the program").map(Some)
    }

    fn values(&self, number: i32) -> Result<&Values> {
        self.maps.get(&number).with_context(|| format!("map {number} has no values here"))
    }

    /// What a function of the kernel gives.
    fn call(&self, helper: i32, [first, second]: [u64; 2]) -> Result<u64> {
        match helper {
            MAP_LOOKUP => {
                let key = load(second, 4);
                if first == self.schedules.0 as u64 {
                    let table = self.schedules.1.get(&(key as u32));
                    return Ok(table.map_or(0, address));
                }
                if let Some(table) = self.schedules.1.values().find(|table| address(table) == first) {
                    let there = key < table.len() as u64;
                    return Ok(if there { address(table) + key * 8 } else { 0 });
                }
                let map = self.values(first as i32)?;
                let there = key < u64::from(map.entries);
                Ok(if there { address(&map.memory) + key * map.size as u64 } else { 0 })
            }
            ADJUST_HEAD => {
                let start = load(address(&self.context), 4).wrapping_add_signed(i64::from(second as i32));
                if start < self.packet.address() {
                    return Ok(u64::MAX);
                }
                store(address(&self.context), 4, start);
                Ok(0)
            }
            JIFFIES => Ok(self.jiffies),
            // `bpf_xdp_get_buff_len`: a frame is in one buffer here.
            FRAME_LENGTH => {
                let context = address(&self.context);
                Ok(load(context + 4, 4) - load(context, 4))
            }
            other => bail!("the helper {other} is none of those that this machine knows"),
        }
    }
}

/// Has the program believe that the tables are as large as they are.
fn patch_masks(object: &mut Object, pins: &Path) -> Result<()> {
    let masks = [
        ("FLOW_BUCKET_MASK", maps::FLOWS.name),
        ("HALF_OPEN_BUCKET_MASK", maps::HALF_OPEN.name),
        ("STICKY_BUCKET_MASK", maps::STICKY.name),
    ];
    for (name, map) in masks {
        let mask = (MapInfo::from_pin(pins.join(map))?.max_entries() - 1).to_ne_bytes();
        object.patch_map_data([(name, (mask.as_slice(), true))].into())?;
    }
    Ok(())
}

/// The schedulers' tables.
fn tables(data_path: &Maps) -> Result<BTreeMap<u32, Region<Word>>> {
    let mut tables = BTreeMap::new();
    for id in 0..u16::try_from(data_path.services.len())? {
        let Some(values) = data_path.kernel.schedule(id)? else { continue };
        let memory: Region<Word> = Region::heap(values.len());
        for (word, value) in memory.iter().zip(values) {
            word.store(value);
        }
        tables.insert(u32::from(id), memory);
    }
    Ok(tables)
}

/// A map's values; none if it has none that are looked at here.
fn values(pins: &Path, name: &str, map: &aya_obj::Map) -> Result<Option<Values>> {
    let size = (map.value_size() as usize).next_multiple_of(8);
    let Some(spec) = maps::ALL.iter().find(|spec| spec.name_in_object() == name) else {
        ensure!(
            !matches!(map.section_kind(), EbpfSectionKind::BtfMaps | EbpfSectionKind::Maps),
            "an unknown map"
        );
        // The compiler's own: constants.
        let memory = Region::<Word>::heap(map.data().len().div_ceil(8));
        // SAFETY: the memory is ours, and as long.
        unsafe {
            std::ptr::copy_nonoverlapping(map.data().as_ptr(), address(&memory) as *mut u8, map.data().len());
        }
        return Ok(Some(Values { memory, size, entries: 1 }));
    };
    match spec.kind {
        MapKind::Array => {
            let path = pins.join(spec.name);
            let entries = MapInfo::from_pin(&path)?.max_entries();
            let memory =
                Region::map(MapData::from_pin(&path)?.fd().as_fd(), size / 8 * entries as usize, true)?;
            Ok(Some(Values { memory, size, entries }))
        }
        // This processor's.
        MapKind::PerCpuArray => {
            let memory = Region::heap(size / 8 * map.max_entries() as usize);
            Ok(Some(Values { memory, size, entries: map.max_entries() }))
        }
        MapKind::ArrayOfMaps | MapKind::DevMap | MapKind::RingBuf => Ok(None),
    }
}

/// A string of BTF: the header says where strings begin (Documentation/bpf/btf.rst, `struct btf_header`).
fn string(btf: &[u8], at: u32) -> Result<String> {
    let word = |at: usize| -> Result<usize> {
        let word = btf.get(at..at + 4).context("short BTF")?.first_chunk().copied().context("short BTF")?;
        Ok(u32::from_ne_bytes(word) as usize)
    };
    let start = word(4)? + word(16)? + at as usize;
    let bytes = btf.get(start..).context("short BTF")?.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

/// Bytes that a load or store is of.
const fn width(code: u8) -> usize {
    match code & 0x18 {
        0x00 => 4,
        0x08 => 2,
        0x10 => 1,
        _ => 8,
    }
}

/// Reads so many bytes, least significant first. The kernel has verified that what the program reads and writes is its stack, its
/// context, the packet and maps' values, all of which are memory of ours here.
fn load(address: u64, width: usize) -> u64 {
    let mut bytes = [0; 8];
    // SAFETY: see above.
    unsafe { std::ptr::copy_nonoverlapping(address as *const u8, bytes.as_mut_ptr(), width) };
    u64::from_le_bytes(bytes)
}

/// As [`load`].
fn store(address: u64, width: usize, value: u64) {
    // SAFETY: see there.
    unsafe { std::ptr::copy_nonoverlapping(value.to_le_bytes().as_ptr(), address as *mut u8, width) };
}

/// BPF_ADD, BPF_FETCH, BPF_XCHG and BPF_CMPXCHG: nobody else has the maps meanwhile.
fn atomic(place: u64, width: usize, operation: i32, source: usize, registers: &mut [u64; 11]) -> Result<()> {
    let old = load(place, width);
    match operation {
        0x00 => store(place, width, old.wrapping_add(registers[source])),
        0x01 => {
            store(place, width, old.wrapping_add(registers[source]));
            registers[source] = old;
        }
        0xe1 => {
            store(place, width, registers[source]);
            registers[source] = old;
        }
        0xf1 => {
            if old == registers[0] {
                store(place, width, registers[source]);
            }
            registers[0] = old;
        }
        other => bail!("an atomic operation {other:#x}"),
    }
    Ok(())
}

fn arithmetic(code: u8, left: u64, right: u64, instruction: &bpf_insn) -> Result<u64> {
    let wide = code & 7 == 7;
    let (left, right) = if wide { (left, right) } else { (u64::from(left as u32), u64::from(right as u32)) };
    let shift = right as u32 & if wide { 63 } else { 31 };
    let value = match code >> 4 {
        0x0 => left.wrapping_add(right),
        0x1 => left.wrapping_sub(right),
        0x2 => left.wrapping_mul(right),
        0x3 => left.checked_div(right).unwrap_or(0),
        0x4 => left | right,
        0x5 => left & right,
        0x6 => left << shift,
        0x7 => left >> shift,
        0x8 => left.wrapping_neg(),
        0x9 => {
            if right == 0 {
                left
            } else {
                left % right
            }
        }
        0xa => left ^ right,
        0xb => match instruction.off {
            0 => right,
            8 => i64::from(right as i8) as u64,
            16 => i64::from(right as i16) as u64,
            32 => i64::from(right as i32) as u64,
            other => bail!("a move of {other} bits"),
        },
        0xc => {
            if wide {
                (left as i64 >> shift) as u64
            } else {
                (left as i32 >> shift) as u64
            }
        }
        0xd => return Ok(swapped(code, left, instruction.imm)),
        other => bail!("arithmetic {other:#x}"),
    };
    Ok(if wide { value } else { u64::from(value as u32) })
}

/// To or from big endian, of a register of the whole width.
fn swapped(code: u8, value: u64, bits: i32) -> u64 {
    let to_big = code & 8 != 0 || code & 7 == 7;
    match bits {
        16 => u64::from(if to_big { (value as u16).swap_bytes() } else { value as u16 }),
        32 => u64::from(if to_big { (value as u32).swap_bytes() } else { value as u32 }),
        _ => {
            if to_big {
                value.swap_bytes()
            } else {
                value
            }
        }
    }
}

fn holds(condition: u8, narrow: bool, left: u64, right: u64) -> Result<bool> {
    let (left, right, signed) = if narrow {
        (u64::from(left as u32), u64::from(right as u32), (i64::from(left as i32), i64::from(right as i32)))
    } else {
        (left, right, (left as i64, right as i64))
    };
    Ok(match condition {
        0x1 => left == right,
        0x2 => left > right,
        0x3 => left >= right,
        0x4 => left & right != 0,
        0x5 => left != right,
        0x6 => signed.0 > signed.1,
        0x7 => signed.0 >= signed.1,
        0xa => left < right,
        0xb => left <= right,
        0xc => signed.0 < signed.1,
        0xd => signed.0 <= signed.1,
        other => bail!("a condition {other:#x}"),
    })
}
