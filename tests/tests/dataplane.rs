//! The data path on a real kernel: started, adopted, replaced, refused and removed, in namespaces of each test's own.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on has failed")]

use std::{
    env, fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio, abort},
    thread,
    time::{Duration, Instant},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapInfo, PerCpuArray, PerCpuValues},
    programs::{
        Xdp,
        links::{FdLink, PinnedLink},
        xdp::XdpLink,
    },
};
use lb_common::{
    clock::Ticks,
    control::LAYOUT_VERSION,
    flow::{FLOW_WORDS, Flows},
    hash::{hash3, mix},
    life::{Life, SlotState},
    maps::{self, ALL, MapSpec, Traffic},
    reason::REASONS,
    sticky::StickyServer,
    table::{BUCKET, Insert, insert_if_absent},
    tcp::TcpState,
};
use lb_userspace::{
    config::XdpMode,
    dataplane::{
        Clock, CountersOf, DataPath, Geometry,
        clock::{POSSIBLE_HZ, measure_hz},
        load::{Detached, Started, detach},
        pinned::{Access, open},
        program::{Mode, status},
    },
    object::{CLOCK_PROGRAM, OBJECT, PROGRAM},
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

const INTERFACE: &str = "lb0";

/// Runs a test in a network and a mount namespace of its own, with a BPF file system and a pair of veths. All of it
/// goes when the thread ends, in whatever way.
fn in_namespaces(test: impl FnOnce(&Path) + Send + 'static) {
    let directory = tempfile::tempdir().unwrap();
    let bpf = directory.path().to_owned();
    let result = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("these tests need root");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        mount(Some("bpf"), &bpf, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        ip(&["link", "add", INTERFACE, "type", "veth", "peer", "name", "peer0"]);
        ip(&["link", "set", INTERFACE, "up"]);
        ip(&["link", "set", "peer0", "up"]);
        test(&bpf.join("steadfast"));
    })
    .join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &[&str]) -> String {
    let output = Command::new("/usr/sbin/ip").args(arguments).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "ip {arguments:?}: {complaint}");
    String::from_utf8(output.stdout).unwrap()
}

fn has_xdp(interface: &str) -> bool {
    ip(&["-d", "link", "show", "dev", interface]).contains("xdp")
}

fn start(pin_dir: &Path) -> (DataPath, Started) {
    DataPath::start(pin_dir, INTERFACE, XdpMode::Auto, Geometry::SMALL).unwrap()
}

fn refusal(pin_dir: &Path, interface: &str, mode: XdpMode, geometry: Geometry) -> String {
    match DataPath::start(pin_dir, interface, mode, geometry) {
        Ok((_, started)) => panic!("it was {started:?}"),
        Err(error) => format!("{error:#}"),
    }
}

/// The id of the program on the interface.
fn running(pin_dir: &Path) -> u32 {
    let programs = status(pin_dir).unwrap();
    assert_eq!(programs[0].name, PROGRAM);
    assert_eq!(programs[0].attached.len(), 1, "{programs:?}");
    programs[0].id
}

fn pinned() -> impl Iterator<Item = &'static MapSpec> {
    static MAPS: [MapSpec; ALL.len()] = ALL;
    MAPS.iter().filter(|spec| spec.is_pinned())
}

#[test]
fn a_first_start_attaches_to_the_driver_and_makes_every_map_at_its_size() {
    in_namespaces(|pin_dir| {
        let (path, started) = start(pin_dir);
        assert_eq!(started, Started::Fresh);
        assert_eq!((path.attached.mode, &path.attached.note), (Mode::Native, &None));
        assert!(has_xdp(INTERFACE));
        for spec in pinned() {
            let info = MapInfo::from_pin(pin_dir.join("maps").join(spec.name)).unwrap();
            let wanted = match spec.name {
                "FLOWS" | "STICKY" => (1 << 12) / spec.rows,
                "HALF_OPEN" => (1 << 11) / spec.rows,
                "FLOW_TAGS" => (1 << 12) / BUCKET,
                "HALF_OPEN_TAGS" => (1 << 11) / BUCKET,
                "PORT_CELLS" => 4 * 4096,
                "PORT_CURSORS" => 4,
                _ => spec.max_entries,
            };
            // `BPF_F_RDONLY_PROG`: the kernel gives it to device maps itself.
            let flags = info.map_flags() & !(1 << 7);
            assert_eq!(
                (info.max_entries(), info.value_size(), flags),
                (wanted, spec.value_size, spec.flags),
                "{}",
                spec.name
            );
        }
        assert_eq!(path.maps.control().layout.load(), 0, "nothing is served yet");
        let programs = status(pin_dir).unwrap();
        assert_eq!(
            (programs[0].id, programs[0].attached[0].link),
            (path.attached.program, path.attached.link)
        );
        assert_eq!(programs[0].attached[0].mode, Some(Mode::Native));
        assert!(programs[0].verified_instructions.unwrap() > 1000 && programs[0].loaded_at.is_some());
        assert_eq!((programs[1].name.as_str(), programs[1].attached.len()), (CLOCK_PROGRAM, 0));
    });
}

#[test]
fn dropping_it_detaches_nothing_and_the_next_start_adopts_all_of_it() {
    in_namespaces(|pin_dir| {
        let (path, _) = start(pin_dir);
        let (link, program) = (path.attached.link, running(pin_dir));
        let mark = Life::from_word(0).with_state(SlotState::Live).word();
        path.maps.flows[77].life.store(mark);
        path.maps.control().snat.store(Geometry::SMALL.snat().word());
        path.maps.control().layout.store(LAYOUT_VERSION);
        drop(path);
        assert!(has_xdp(INTERFACE));
        let (path, started) = start(pin_dir);
        assert_eq!(started, Started::Adopted { program_replaced: false });
        assert_eq!((path.attached.link, running(pin_dir)), (link, program));
        assert_eq!(path.maps.flows[77].life.load(), mark);
    });
}

fn map_ids(pin_dir: &Path) -> Vec<u32> {
    pinned().map(|spec| MapInfo::from_pin(pin_dir.join("maps").join(spec.name)).unwrap().id()).collect()
}

#[test]
fn pins_that_are_removed_come_back_without_a_gap_and_the_directory_is_locked_again() {
    in_namespaces(|pin_dir| {
        let (mut path, _) = start(pin_dir);
        let before = (path.attached.link, running(pin_dir), map_ids(pin_dir));
        for removed in ["", "maps", "programs", "links"] {
            fs::remove_dir_all(pin_dir.join(removed)).unwrap();
            assert!(has_xdp(INTERFACE), "{removed}");
            let said = path.put_back(XdpMode::Auto).unwrap().unwrap();
            assert!(said.contains("pins were removed"), "{said}");
            assert_eq!(
                (status(pin_dir).unwrap()[0].attached[0].link, running(pin_dir), map_ids(pin_dir)),
                before
            );
            assert_eq!(path.put_back(XdpMode::Auto).unwrap(), None);
            let refused = refusal(pin_dir, INTERFACE, XdpMode::Auto, Geometry::SMALL);
            assert!(refused.contains("already"), "{refused}");
        }
    });
}

#[test]
fn an_interface_that_is_made_anew_gets_the_program_and_the_tables_stay() {
    in_namespaces(|pin_dir| {
        let (mut path, _) = start(pin_dir);
        let maps = map_ids(pin_dir);
        path.extend("late0", XdpMode::Auto).unwrap();
        assert_eq!(path.put_back(XdpMode::Auto).unwrap(), None, "it is not there yet");
        ip(&["link", "delete", INTERFACE]);
        assert_eq!(path.put_back(XdpMode::Auto).unwrap(), None, "nothing can be done");
        ip(&["link", "add", "late0", "type", "veth", "peer", "name", "late1"]);
        ip(&["link", "add", INTERFACE, "type", "veth", "peer", "name", "peer0"]);
        let said = path.put_back(XdpMode::Auto).unwrap().unwrap();
        assert!(
            said.contains(&format!("{INTERFACE} was made anew")) && said.contains("late0 is there"),
            "{said}"
        );
        assert!(has_xdp(INTERFACE) && has_xdp("late0"));
        assert_eq!(map_ids(pin_dir), maps);
        drop(path);
        let (_, started) = start(pin_dir);
        assert_eq!(started, Started::Adopted { program_replaced: false });
    });
}

/// Not a test: what [`a_killed_daemon_leaves_the_data_path_running`] runs as another process.
#[test]
#[ignore = "the child of another test"]
fn child_that_aborts() {
    let Some(pin_dir) = env::var_os("STEADFAST_TEST_PINS").map(PathBuf::from) else { return };
    let _path = start(&pin_dir);
    abort();
}

#[test]
fn a_killed_daemon_leaves_the_data_path_running() {
    in_namespaces(|pin_dir| {
        let child = Command::new(env::current_exe().unwrap())
            .args(["--ignored", "--exact", "child_that_aborts"])
            .env("STEADFAST_TEST_PINS", pin_dir)
            .output()
            .unwrap();
        assert_eq!(child.status.signal(), Some(libc::SIGABRT), "{child:?}");
        assert!(has_xdp(INTERFACE));
        let program = running(pin_dir);
        let (_, started) = start(pin_dir);
        assert_eq!(started, Started::Adopted { program_replaced: false });
        assert_eq!(running(pin_dir), program);
    });
}

#[test]
fn a_first_start_killed_at_any_moment_can_be_made_again() {
    in_namespaces(|pin_dir| {
        for milliseconds in [3, 30, 100, 200, 300, 400, 600] {
            let mut child = Command::new(env::current_exe().unwrap())
                .args(["--ignored", "--exact", "child_that_aborts", "--quiet"])
                .env("STEADFAST_TEST_PINS", pin_dir)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            thread::sleep(Duration::from_millis(milliseconds));
            child.kill().unwrap();
            child.wait().unwrap();
            let (path, _) = start(pin_dir);
            assert!(path.maps.kernel.jiffies().unwrap() > 0 && has_xdp(INTERFACE));
            drop(path);
            detach(pin_dir).unwrap();
        }
    });
}

#[test]
fn a_second_daemon_is_refused_and_told_of_the_first() {
    in_namespaces(|pin_dir| {
        let (first, _) = start(pin_dir);
        let error = refusal(pin_dir, INTERFACE, XdpMode::Auto, Geometry::SMALL);
        assert!(error.contains(&format!("process {} runs", std::process::id())), "{error}");
        let error = detach(pin_dir).unwrap_err().to_string();
        assert!(error.contains("runs the data path"), "{error}");
        drop(first);
        start(pin_dir);
    });
}

/// The object's small program, as somebody else's.
fn foreign() -> Ebpf {
    let mut object = EbpfLoader::new().load(OBJECT).unwrap();
    xdp(&mut object).load().unwrap();
    object
}

fn xdp(object: &mut Ebpf) -> &mut Xdp {
    object.program_mut(CLOCK_PROGRAM).unwrap().try_into().unwrap()
}

#[test]
fn another_program_on_the_interface_is_named_and_left_alone() {
    in_namespaces(|pin_dir| {
        let mut other = foreign();
        xdp(&mut other).attach(INTERFACE, aya::programs::XdpMode::Driver).unwrap();
        let id = xdp(&mut other).info().unwrap().id();
        let error = refusal(pin_dir, INTERFACE, XdpMode::Auto, Geometry::SMALL);
        assert!(error.contains(&format!("program {id} ({CLOCK_PROGRAM}) is on {INTERFACE}")), "{error}");
        assert!(has_xdp(INTERFACE) && !pin_dir.exists());
        drop(other);
        start(pin_dir);
    });
}

#[test]
fn another_build_of_the_program_is_replaced_within_its_link() {
    in_namespaces(|pin_dir| {
        let (path, _) = start(pin_dir);
        let (link, before) = (path.attached.link, running(pin_dir));
        drop(path);
        let mut older = foreign();
        let pinned: FdLink = PinnedLink::from_pin(pin_dir.join("links").join(INTERFACE)).unwrap().into();
        xdp(&mut older).attach_to_link(XdpLink::try_from(pinned).unwrap()).unwrap();
        let (path, started) = start(pin_dir);
        assert_eq!(started, Started::Adopted { program_replaced: true });
        assert_eq!(path.attached.link, link, "it was never taken off");
        assert_ne!(running(pin_dir), before);
        drop(path);
        assert_eq!(start(pin_dir).1, Started::Adopted { program_replaced: false });
    });
}

#[test]
fn a_program_that_uses_other_maps_than_the_pinned_ones_is_replaced() {
    in_namespaces(|pin_dir| {
        drop(start(pin_dir));
        fs::remove_file(pin_dir.join("maps/STICKY")).unwrap();
        let (_, started) = start(pin_dir);
        assert_eq!(started, Started::Adopted { program_replaced: true });
    });
}

/// A data path in use, with one record.
fn in_use(pin_dir: &Path) -> DataPath {
    let (path, _) = start(pin_dir);
    let control = path.maps.control();
    control.hz.store(250);
    control.snat.store(Geometry::SMALL.snat().word());
    control.layout.store(LAYOUT_VERSION);
    let live = Life::from_word(0).with_state(SlotState::Live).with_deadline(path.maps.now().unwrap());
    let record = &path.maps.sticky[5];
    let to = StickyServer { service: 0, port: 0, server: 3, made_at: Ticks(0), verified: true };
    record.words.iter().zip([0, 7, to.word()]).for_each(|(word, value)| word.store(value));
    record.life.store(live.with_deadline(Ticks(live.deadline().0.wrapping_add(10_000))).word());
    path
}

/// The one record of [`in_use`], wherever it lies now.
fn has_record(path: &DataPath) -> bool {
    let live = path.maps.sticky.iter().filter(|slot| slot.life().state() == SlotState::Live);
    live.map(|slot| slot.words[1].load()).collect::<Vec<_>>() == [7]
}

#[test]
fn tables_of_other_sizes_are_carried_over_within_the_link() {
    in_namespaces(|pin_dir| {
        let path = in_use(pin_dir);
        let (link, before) = (path.attached.link, running(pin_dir));
        drop(path);
        let larger =
            Geometry { flows: 1 << 13, sticky: 1 << 11, endpoints: 8, first_port: 1000, ..Geometry::SMALL };
        let (path, started) = DataPath::start(pin_dir, INTERFACE, XdpMode::Auto, larger).unwrap();
        let Started::Migrated(carried) = started else { panic!("{started:?}") };
        assert_eq!((carried.sticky, carried.flows, carried.lost), (1, 0, 0));
        assert!(has_record(&path));
        assert_eq!((path.maps.flows.len(), path.maps.sticky.len()), (1 << 13, 1 << 11));
        assert_eq!(path.maps.control().snat.load(), larger.snat().word());
        assert_eq!(path.maps.control().carrying.load(), 0);
        assert_eq!(path.attached.link, link, "it was never taken off");
        assert_ne!(running(pin_dir), before);
        assert!(!pin_dir.join("next").exists());
        drop(path);
        let again = DataPath::start(pin_dir, INTERFACE, XdpMode::Auto, larger).unwrap();
        assert_eq!(again.1, Started::Adopted { program_replaced: false });
        drop(again);
        assert_eq!(detach(pin_dir).unwrap().pins, pinned().count() + 2);
        assert!(!pin_dir.exists());
    });
}

#[test]
fn other_source_addresses_are_refused() {
    in_namespaces(|pin_dir| {
        drop(in_use(pin_dir));
        let error = refusal(pin_dir, INTERFACE, XdpMode::Auto, Geometry { sources: 2, ..Geometry::SMALL });
        assert!(error.contains("1 IPv4 and 0 IPv6 source addresses, and 2 and 0 are wanted"), "{error}");
        assert!(has_xdp(INTERFACE));
        assert_eq!(start(pin_dir).1, Started::Adopted { program_replaced: false });
    });
}

/// Puts an empty table in the shape of layout 2, in which a row was a value, in a table's place; the given row is in it.
fn put_older<const WORDS: usize>(pin_dir: &Path, spec: &MapSpec, slots: u32, row: Option<[u64; WORDS]>)
where
    [u64; WORDS]: aya::Pod,
{
    let mut table: Array<_, [u64; WORDS]> = Array::create(slots, maps::MMAPABLE).unwrap();
    if let Some(row) = row {
        table.set(5, row, 0).unwrap();
    }
    let pin = pin_dir.join("maps").join(spec.name);
    fs::remove_file(&pin).unwrap();
    table.pin(&pin).unwrap();
}

#[test]
fn maps_of_layout_2_are_carried_over() {
    in_namespaces(|pin_dir| {
        let path = in_use(pin_dir);
        path.maps.control().layout.store(2);
        // Of service 0 to server 3.
        let record = [path.maps.sticky[5].life.load(), 0, 7, 3 << 16];
        drop(path);
        put_older::<8>(pin_dir, &maps::FLOWS, 1 << 12, None);
        put_older::<8>(pin_dir, &maps::HALF_OPEN, 1 << 11, None);
        put_older(pin_dir, &maps::STICKY, 1 << 12, Some(record));
        let error = open(pin_dir, Access::ReadOnly).map(drop).unwrap_err().to_string();
        assert!(error.contains("layout 2"), "{error}");
        let (path, started) = start(pin_dir);
        let Started::Migrated(carried) = started else { panic!("{started:?}") };
        assert_eq!((carried.layout, carried.sticky, carried.lost), (2, 1, 0));
        assert!(has_record(&path));
        let row = path.maps.sticky.iter().find(|slot| slot.life().state() == SlotState::Live).unwrap();
        assert_eq!(StickyServer::from_word(row.words[2].load()).server, 3);
        assert_eq!(path.maps.control().layout.load(), LAYOUT_VERSION);
    });
}

/// In layout 3 flows had no tags.
#[test]
fn flows_of_the_layout_before_get_their_tags() {
    in_namespaces(|pin_dir| {
        let path = in_use(pin_dir);
        let (maps, now) = (&path.maps, path.maps.now().unwrap());
        let later = Ticks(now.0.wrapping_add(10_000));
        // The hash spreads nothing without a secret.
        maps.control().hash_key.iter().zip(1..).for_each(|(word, value)| word.store(mix(value)));
        for client in 0..500 {
            let words = [0, client, 7, 3, 0, 0, 0];
            let hash = hash3(&maps.key(), [0, client, 7]);
            let note = TcpState::Established as u32;
            let inserted = insert_if_absent::<FLOW_WORDS, Flows, _>(
                &maps.flows,
                hash,
                &words,
                note,
                later,
                now,
                |_, _, _| {},
            );
            assert!(matches!(inserted, Insert::Inserted(_)), "{inserted:?}");
        }
        maps.control().layout.store(LAYOUT_VERSION - 1);
        drop(path);
        for spec in [&maps::FLOW_TAGS, &maps::HALF_OPEN_TAGS] {
            fs::remove_file(pin_dir.join("maps").join(spec.name)).unwrap();
        }
        let (path, started) = start(pin_dir);
        let Started::Migrated(carried) = started else { panic!("{started:?}") };
        assert_eq!((carried.layout, carried.flows, carried.lost), (LAYOUT_VERSION - 1, 500, 0));
        assert_eq!(path.maps.flows.untagged(&path.maps.key()).count(), 0);
        assert!(path.maps.flows.all_tags().iter().any(|tags| tags.load() != 0));
    });
}

/// Not a test: a migration that another test kills.
#[test]
#[ignore = "the child of another test"]
fn child_that_migrates() {
    let Some(pin_dir) = env::var_os("STEADFAST_TEST_PINS").map(PathBuf::from) else { return };
    let larger = Geometry { flows: 1 << 13, sticky: 1 << 13, ..Geometry::SMALL };
    drop(DataPath::start(&pin_dir, INTERFACE, XdpMode::Auto, larger).unwrap());
}

#[test]
fn a_migration_killed_at_any_moment_is_finished_or_forgotten() {
    in_namespaces(|pin_dir| {
        for milliseconds in [50, 200, 350, 500, 700, 1000] {
            drop(in_use(pin_dir));
            let mut child = Command::new(env::current_exe().unwrap())
                .args(["--ignored", "--exact", "child_that_migrates", "--quiet"])
                .env("STEADFAST_TEST_PINS", pin_dir)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            thread::sleep(Duration::from_millis(milliseconds));
            child.kill().unwrap();
            child.wait().unwrap();
            let larger = Geometry { flows: 1 << 13, sticky: 1 << 13, ..Geometry::SMALL };
            let (path, started) = DataPath::start(pin_dir, INTERFACE, XdpMode::Auto, larger).unwrap();
            assert!(has_record(&path), "killed after {milliseconds} ms, {started:?}");
            assert_eq!(path.maps.sticky.len(), 1 << 13);
            assert!(!pin_dir.join("next").exists());
            drop(path);
            detach(pin_dir).unwrap();
        }
    });
}

#[test]
fn a_first_start_that_was_interrupted_is_continued_even_with_other_sizes() {
    in_namespaces(|pin_dir| {
        drop(start(pin_dir));
        // As if it had been killed after the maps: no link, no programs, half of the maps.
        fs::remove_file(pin_dir.join("links").join(INTERFACE)).unwrap();
        fs::remove_file(pin_dir.join("programs").join(PROGRAM)).unwrap();
        fs::remove_file(pin_dir.join("maps/STICKY")).unwrap();
        fs::remove_file(pin_dir.join("maps/SERVER_INFO")).unwrap();
        until("the program is off", || !has_xdp(INTERFACE));
        let larger = Geometry { flows: 1 << 13, ..Geometry::SMALL };
        let (path, started) = DataPath::start(pin_dir, INTERFACE, XdpMode::Auto, larger).unwrap();
        assert_eq!(started, Started::Fresh);
        assert_eq!((path.maps.flows.len(), path.maps.sticky.len()), (1 << 13, 1 << 12));
    });
}

#[test]
fn sessions_survive_an_interface_that_is_made_anew() {
    in_namespaces(|pin_dir| {
        let (path, _) = start(pin_dir);
        path.maps.control().snat.store(Geometry::SMALL.snat().word());
        path.maps.control().layout.store(LAYOUT_VERSION);
        path.maps.sticky[5].life.store(99);
        drop(path);
        ip(&["link", "del", INTERFACE]);
        ip(&["link", "add", INTERFACE, "type", "veth", "peer", "name", "peer0"]);
        let (path, started) = start(pin_dir);
        assert_eq!(started, Started::Fresh);
        assert_eq!(path.maps.sticky[5].life.load(), 99);
        assert!(has_xdp(INTERFACE));
    });
}

#[test]
fn a_renamed_interface_keeps_its_program() {
    in_namespaces(|pin_dir| {
        let (path, _) = start(pin_dir);
        let link = path.attached.link;
        drop(path);
        ip(&["link", "set", INTERFACE, "down"]);
        ip(&["link", "set", INTERFACE, "name", "front.100"]);
        let (path, started) = DataPath::start(pin_dir, "front.100", XdpMode::Auto, Geometry::SMALL).unwrap();
        assert_eq!(started, Started::Adopted { program_replaced: false });
        assert_eq!(path.attached.link, link);
        drop(path);
        assert_eq!(detach(pin_dir).unwrap().interfaces, ["front.100"]);
    });
}

#[test]
fn detaching_leaves_nothing_behind_and_twice_is_no_error() {
    in_namespaces(|pin_dir| {
        assert_eq!(detach(pin_dir).unwrap(), Detached::default());
        drop(start(pin_dir));
        let detached = detach(pin_dir).unwrap();
        assert_eq!((detached.interfaces, detached.pins), (vec![INTERFACE.to_owned()], pinned().count() + 2));
        assert!(!has_xdp(INTERFACE) && !pin_dir.exists());
        assert_eq!(detach(pin_dir).unwrap(), Detached::default());
        let error = open(pin_dir, Access::ReadOnly).map(drop).unwrap_err();
        assert!(format!("{error:#}").contains("not running here"), "{error:#}");
        assert_eq!(start(pin_dir).1, Started::Fresh);
    });
}

#[test]
fn a_driver_that_refuses_is_told_of_or_gone_around() {
    in_namespaces(|pin_dir| {
        let error = refusal(pin_dir, "lo", XdpMode::Native, Geometry::SMALL);
        assert!(error.contains("the driver of lo") && error.contains("xdp_mode"), "{error}");
        assert!(!has_xdp("lo"));
        assert!(!pin_dir.join("maps/FLOWS").exists(), "no memory is held by tables without a use");
        let (path, _) = DataPath::start(pin_dir, "lo", XdpMode::Auto, Geometry::SMALL).unwrap();
        assert_eq!(path.attached.mode, Mode::Generic);
        assert!(path.attached.note.unwrap().contains("runs generic"));
    });
}

#[test]
fn a_driver_that_takes_several_buffers_is_served_with_jumbo_frames() {
    in_namespaces(|pin_dir| {
        ip(&["link", "set", INTERFACE, "mtu", "9000"]);
        ip(&["link", "set", "peer0", "mtu", "9000"]);
        let (path, _) = DataPath::start(pin_dir, INTERFACE, XdpMode::Native, Geometry::SMALL).unwrap();
        assert_eq!(path.attached.mode, Mode::Native);
    });
}

#[test]
fn generic_where_it_is_asked_for() {
    in_namespaces(|pin_dir| {
        let (path, _) = DataPath::start(pin_dir, INTERFACE, XdpMode::Generic, Geometry::SMALL).unwrap();
        assert_eq!((path.attached.mode, &path.attached.note), (Mode::Generic, &None));
        drop(path);
        let (path, _) = DataPath::start(pin_dir, INTERFACE, XdpMode::Native, Geometry::SMALL).unwrap();
        assert_eq!(path.attached.mode, Mode::Generic);
        assert!(path.attached.note.unwrap().contains("stays generic"));
    });
}

#[test]
fn maps_of_another_layout_are_refused_by_daemon_and_reader() {
    in_namespaces(|pin_dir| {
        let (path, _) = start(pin_dir);
        path.maps.control().layout.store(LAYOUT_VERSION + 1);
        drop(path);
        let error = refusal(pin_dir, INTERFACE, XdpMode::Auto, Geometry::SMALL);
        assert!(error.contains(&format!("layout {}", LAYOUT_VERSION + 1)), "{error}");
        let error = open(pin_dir, Access::ReadOnly).map(drop).unwrap_err();
        assert!(error.to_string().contains("layout"), "{error:#}");
        assert!(has_xdp(INTERFACE));
    });
}

#[test]
fn the_kernels_clock_is_read_and_its_speed_found() {
    in_namespaces(|pin_dir| {
        let (path, _) = start(pin_dir);
        let kernel = &*path.maps.kernel;
        let hz = measure_hz(kernel).unwrap();
        assert!(POSSIBLE_HZ.contains(&hz));
        let begun = Instant::now();
        let first = kernel.jiffies().unwrap();
        thread::sleep(Duration::from_millis(500));
        let passed = kernel.jiffies().unwrap() - first;
        // However late this thread is: at least the sleep, at most what another clock says.
        let most = u64::try_from(begun.elapsed().as_millis()).unwrap() * hz / 1000 + 2;
        assert!((hz / 2 - 1..=most).contains(&passed), "{passed} jiffies at HZ {hz}, not up to {most}");
        let clock = Clock::read(&path.maps).unwrap();
        assert_eq!(clock.hz, hz);
        assert_eq!(
            Clock::read(&path.maps).unwrap().instant_of(clock.now()).duration_since(clock.at).as_secs(),
            0
        );
    });
}

#[test]
fn a_scheduler_table_is_replaced_whole_and_read_back() {
    in_namespaces(|pin_dir| {
        let (path, _) = start(pin_dir);
        let kernel = &*path.maps.kernel;
        assert_eq!(kernel.schedule(3).unwrap(), None);
        for size in [16_386u64, 2, 65_537, 1] {
            let values: Vec<u64> = (0..size).map(|value| value * 7 + size).collect();
            kernel.set_schedule(3, &values).unwrap();
            assert_eq!(kernel.schedule(3).unwrap(), Some(values));
        }
        assert_eq!(kernel.schedule(2).unwrap(), None);
        assert!(kernel.set_schedule(u16::MAX, &[1]).is_err());
        kernel.set_schedule(3, &[]).unwrap();
        kernel.set_schedule(3, &[]).unwrap();
        assert_eq!(kernel.schedule(3).unwrap(), None);
    });
}

#[test]
fn counters_are_summed_over_processors_and_cleared() {
    in_namespaces(|pin_dir| {
        let (path, _) = start(pin_dir);
        let map =
            aya::maps::MapData::from_pin(pin_dir.join("maps").join(maps::SERVER_COUNTERS.name)).unwrap();
        let mut counters: PerCpuArray<_, [u64; 6]> =
            aya::maps::Map::from_map_data(map).unwrap().try_into().unwrap();
        let processors = aya::util::nr_cpus().unwrap();
        let values = vec![[1, 2, 3, 4, 5, 6]; processors];
        counters.set(7, PerCpuValues::try_from(values).unwrap(), 0).unwrap();
        let kernel = &*path.maps.kernel;
        let n = u64::try_from(processors).unwrap();
        let wanted = Traffic {
            packets_in: n,
            bytes_in: 2 * n,
            packets_out: 3 * n,
            bytes_out: 4 * n,
            flows: 5 * n,
            resets: 6 * n,
        };
        assert_eq!(kernel.server_traffic(7).unwrap(), wanted);
        assert_eq!(kernel.service_traffic(7).unwrap(), Traffic::default());
        kernel.clear_traffic(CountersOf::Server(7)).unwrap();
        assert_eq!(kernel.server_traffic(7).unwrap(), Traffic::default());
        assert_eq!(kernel.reasons().unwrap().len(), REASONS);
    });
}

#[test]
fn a_reader_sees_what_the_daemon_writes_and_can_write_nothing() {
    in_namespaces(|pin_dir| {
        let (path, _) = start(pin_dir);
        let reader = open(pin_dir, Access::ReadOnly).unwrap();
        path.maps.half_open[9].words[3].store(1234);
        path.maps.kernel.set_schedule(1, &[5, 6]).unwrap();
        assert_eq!(reader.half_open[9].words[3].load(), 1234);
        assert_eq!(reader.kernel.schedule(1).unwrap(), Some(vec![5, 6]));
        assert!(reader.kernel.jiffies().unwrap() > 0);
        assert!(reader.kernel.set_schedule(1, &[7]).is_err());
        assert!(reader.kernel.clear_traffic(CountersOf::Service(1)).is_err());
    });
}

#[test]
fn the_bpf_file_system_is_mounted_where_it_is_missing() {
    in_namespaces(|_| {
        while fs::exists("/sys/fs/bpf/maps.debug").unwrap() {
            nix::mount::umount("/sys/fs/bpf").unwrap();
        }
        let pin_dir = Path::new("/sys/fs/bpf/steadfast");
        assert_eq!(start(pin_dir).1, Started::Fresh);
        assert!(has_xdp(INTERFACE));
        detach(pin_dir).unwrap();
    });
}

#[test]
fn an_interface_that_does_not_exist_is_refused_before_anything_is_made() {
    in_namespaces(|pin_dir| {
        let error = refusal(pin_dir, "eth9", XdpMode::Auto, Geometry::SMALL);
        assert!(error.contains("no interface eth9") && error.contains(INTERFACE), "{error}");
        assert!(!pin_dir.exists());
    });
}

/// The kernel finishes some things a little later.
fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..200 {
        if holds() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("not within two seconds: {what}");
}
