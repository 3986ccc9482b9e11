//! The built object against `lb_common::maps`: what user space assumes is what the program has.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use aya_obj::{EbpfSectionKind, Object, ProgramSection, generated::bpf_insn};
use lb_common::maps::{self, ALL, INNER_MAP, MapKind, MapSpec, Users};
use lb_userspace::object::{CLOCK_PROGRAM, OBJECT, PROGRAM};

fn object() -> Object {
    Object::parse(OBJECT).expect("the object parses")
}

/// The maps that the source declares, and the section that one is put in the place of, without those that hold the compiler's sections.
fn declared(object: &Object) -> HashMap<&str, &aya_obj::Map> {
    let maps = object.maps.iter();
    maps.filter_map(|(name, map)| match map.section_kind() {
        EbpfSectionKind::BtfMaps | EbpfSectionKind::Maps => Some((name.as_str(), map)),
        _ => ALL.iter().find(|spec| spec.name_in_object() == name).map(|spec| (spec.name, map)),
    })
    .collect()
}

#[test]
fn every_map_of_the_table_is_in_the_object_as_the_table_says() {
    let object = object();
    let declared = declared(&object);
    for spec in ALL.iter().filter(|spec| spec.users != Users::UserSpace) {
        let map = declared.get(spec.name).unwrap_or_else(|| panic!("{} is not in the object", spec.name));
        let found = (map.map_type(), map.key_size(), map.value_size(), map.max_entries(), map.map_flags());
        let key_size = if spec.kind == MapKind::RingBuf { 0 } else { 4 };
        // A section has no flags; the map in its place has.
        let flags = if spec.name == maps::CONTROL.name { 0 } else { spec.flags };
        let wanted = (spec.kind as u32, key_size, spec.value_size, spec.max_entries, flags);
        assert_eq!(found, wanted, "{}", spec.name);
    }
}

#[test]
fn every_map_of_the_object_is_in_the_table() {
    let object = object();
    let found: BTreeSet<&str> = declared(&object).into_keys().collect();
    let shared = ALL.iter().filter(|spec| spec.users != Users::UserSpace);
    let wanted: BTreeSet<&str> = shared.map(|spec| spec.name).collect();
    assert_eq!(found, wanted);
    let others: Vec<&MapSpec> = ALL.iter().filter(|spec| spec.users == Users::UserSpace).collect();
    assert!(others.iter().all(|spec| !object.maps.contains_key(spec.name)));
    assert_eq!(found.len() + others.len(), ALL.len(), "no name twice");
}

#[test]
fn a_scheduler_table_may_have_any_size() {
    let object = object();
    let inner = object.maps[maps::SCHEDULE.name].inner().expect("it has a template");
    assert_eq!(
        (inner.map_type(), inner.key_size(), inner.value_size(), inner.map_flags()),
        (MapKind::Array as u32, 4, 8, INNER_MAP)
    );
}

#[test]
fn the_object_has_the_two_programs_and_no_other() {
    let object = object();
    let names: BTreeSet<&str> = object.programs.keys().map(String::as_str).collect();
    assert_eq!(names, BTreeSet::from([PROGRAM, CLOCK_PROGRAM]));
    let programs = object.programs.values();
    let all_xdp = programs.into_iter().all(|program| matches!(program.section, ProgramSection::Xdp { .. }));
    assert!(all_xdp);
}

#[test]
fn the_bucket_masks_fit_the_tables_of_the_object() {
    for (global, table) in [
        ("FLOW_BUCKET_MASK", maps::FLOWS),
        ("HALF_OPEN_BUCKET_MASK", maps::HALF_OPEN),
        ("STICKY_BUCKET_MASK", maps::STICKY),
    ] {
        assert_eq!(global_of(global), table.max_entries - 1, "{global}");
    }
}

/// The value that a global has in the object. The parser tells where a global is by writing to it alone.
fn global_of(name: &str) -> u32 {
    let before = object();
    let mut after = object();
    let [first, second] = [0x5555_5555u32, 0xaaaa_aaaa].map(|mark| {
        let mark = mark.to_ne_bytes();
        let globals = HashMap::from([(name, (mark.as_slice(), true))]);
        after.patch_map_data(globals).expect(name);
        read_only_data(&after)
    });
    let place = first
        .iter()
        .zip(&second)
        .position(|(first, second)| first != second)
        .expect("two marks differ where the global is");
    let bytes = read_only_data(&before)[place..place + 4].try_into().expect("four bytes");
    u32::from_ne_bytes(bytes)
}

fn read_only_data(object: &Object) -> Vec<u8> {
    let mut sections: Vec<_> =
        object.maps.iter().filter(|(_, map)| map.section_kind() == EbpfSectionKind::Rodata).collect();
    sections.sort_by_key(|(name, _)| (*name).clone());
    sections.into_iter().flat_map(|(_, map)| map.data().to_vec()).collect()
}

/// A program with everything that it calls, as the kernel gets it.
fn linked(name: &str) -> Vec<bpf_insn> {
    let mut object = object();
    let sections = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&sections).expect("its functions can be linked");
    let key = object.programs[name].function_key();
    object.functions[&key].instructions.clone()
}

const FRAME_POINTER: u8 = 10;

/// Bytes of stack that a function takes, as the kernel reckons: `instructions` are the function's own.
fn frame(instructions: &[bpf_insn]) -> u32 {
    /// `BPF_ALU64 | BPF_MOV | BPF_X` and `BPF_ALU64 | BPF_ADD | BPF_K`.
    const MOVE: u8 = 0xbf;
    const ADD: u8 = 0x07;
    let mut depth = 1;
    for (instruction, next) in instructions.iter().zip(instructions.iter().skip(1).chain([&instructions[0]]))
    {
        let is_load = instruction.code & 7 == 1;
        let base = if is_load { instruction.src_reg() } else { instruction.dst_reg() };
        let is_memory = matches!(instruction.code & 7, 1..=3);
        let at = if is_memory && base == FRAME_POINTER {
            i32::from(instruction.off)
        } else if instruction.code == MOVE
            && instruction.src_reg() == FRAME_POINTER
            && next.code == ADD
            && next.dst_reg() == instruction.dst_reg()
        {
            next.imm
        } else {
            continue;
        };
        depth = depth.max(at.min(0).unsigned_abs());
    }
    depth.next_multiple_of(32)
}

/// The most stack that a function takes with whatever it calls. `functions` are frames and callees by first instruction.
fn deepest(functions: &BTreeMap<usize, (u32, BTreeSet<usize>)>, at: usize) -> u32 {
    let (frame, callees) = &functions[&at];
    frame + callees.iter().map(|callee| deepest(functions, *callee)).max().unwrap_or(0)
}

/// Kernels before 6.13 count together what functions that call each other take; this machine's may not.
#[test]
fn no_chain_of_calls_takes_more_stack_than_any_kernel_allows() {
    /// `BPF_JMP | BPF_CALL`, `BPF_PSEUDO_CALL` and `MAX_BPF_STACK`.
    const CALL: u8 = 0x85;
    const PSEUDO_CALL: u8 = 1;
    const MOST: u32 = 512;
    let instructions = linked(PROGRAM);
    let calls: Vec<(usize, usize)> = (0usize..)
        .zip(&instructions)
        .filter(|(_, instruction)| instruction.code == CALL && instruction.src_reg() == PSEUDO_CALL)
        .map(|(at, call)| {
            (at, at.checked_add_signed(call.imm as isize + 1).expect("a call within the program"))
        })
        .collect();
    let mut starts: BTreeSet<usize> = calls.iter().map(|(_, to)| *to).collect();
    starts.insert(0);
    let ends = starts.iter().copied().skip(1).chain([instructions.len()]);
    let functions: BTreeMap<usize, (u32, BTreeSet<usize>)> = starts
        .iter()
        .zip(ends)
        .map(|(start, end)| {
            let callees = calls.iter().filter(|(at, _)| (*start..end).contains(at)).map(|(_, to)| *to);
            (*start, (frame(&instructions[*start..end]), callees.collect()))
        })
        .collect();
    let most = deepest(&functions, 0);
    println!("{} functions take up to {most} bytes of stack", functions.len());
    assert!(functions.len() > 10, "the program calls functions of its own");
    assert!((MOST / 2..=MOST).contains(&most), "{most} bytes");
}
