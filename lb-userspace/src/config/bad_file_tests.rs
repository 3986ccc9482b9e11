//! Files that are not a configuration at all: each is one clear error.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::suggest::tests::ASKED;
use super::{MAX_BYTES, MOST_TOLD, parse, parse_file};

fn error_of(content: &[u8]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("steadfast.yaml");
    fs::write(&path, content).unwrap();
    let error = parse_file(&path).unwrap_err().to_string();
    error
        .strip_prefix(&format!("{}:", path.display()))
        .expect("the error begins with the file's path")
        .to_owned()
}

#[test]
fn a_file_over_the_largest_size_is_refused_before_it_is_parsed() {
    let error = "1:1: the configuration is larger than 4194304 bytes; check that this is the right file";
    assert_eq!(error_of(&vec![b'['; 2 * MAX_BYTES]), error);
    assert_eq!(parse("f", &"#".repeat(MAX_BYTES + 1)).unwrap_err().to_string(), format!("f:{error}"));
    let just_fits = parse("f", &"#".repeat(MAX_BYTES)).unwrap_err().to_string();
    assert_eq!(just_fits, "f:1:1: the configuration is empty; start it with \"version: 1\"");
}

#[test]
fn an_empty_file_is_refused() {
    assert_eq!(error_of(b""), "1:1: the configuration is empty; start it with \"version: 1\"");
}

#[test]
fn a_file_that_is_not_utf8_is_refused_with_the_line() {
    assert_eq!(
        error_of(b"version: 1\n# gr\xfcn\n"),
        "1:1: the file is not UTF-8 text (line 2); save it as UTF-8"
    );
}

#[test]
fn a_missing_file_and_a_directory_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("none.yaml");
    for path in [missing.as_path(), directory.path(), Path::new("")] {
        let error = parse_file(path).unwrap_err();
        assert_eq!(error.source_name(), path.display().to_string());
        let text = error.to_string();
        assert!(text.contains(":1:1: cannot read the file: "), "{text}");
        assert!(text.ends_with("; name a file that this user can read"), "{text}");
    }
}

#[test]
fn a_device_without_end_is_refused() {
    let error = parse_file(Path::new("/dev/zero")).unwrap_err().to_string();
    assert!(error.starts_with("/dev/zero:1:1: the configuration is larger than"), "{error}");
}

#[test]
fn text_that_is_not_yaml_is_refused_where_it_goes_wrong() {
    let error = error_of(b"version: 1\nnode: { interfaces: [eth0\n");
    assert!(error.starts_with("2:"), "{error}");
    assert!(error.contains("not readable as YAML: "), "{error}");
}

/// What is done for a file of nonsense: so many mistakes told, so many more, so many bytes of text, and so often the nearest
/// word looked for, which is what costs time.
fn work(head: &str, line: &str, bytes: usize) -> (usize, usize, usize, usize) {
    let text = format!("{head}{}", line.repeat(bytes / line.len()));
    let before = ASKED.get();
    let error = parse("f", &text).unwrap_err();
    (error.problems().len(), error.more(), error.to_string().len(), ASKED.get() - before)
}

#[test]
fn a_file_of_nonsense_gets_the_first_hundred_mistakes_and_a_count_however_large_it_is() {
    let head = "version: 1\nnode: { interfaces: [eth0] }\nvirtual_services:\n";
    for (head, line) in [
        ("", "lable: 1\n"),
        ("", "version: 1\n"),
        ("a: &a { b: 1 }\nc:\n", "- *a\n"),
        (head, "- {}\n"),
        (head, "- { label: a, address: 192.0.2.1, ports: [443], protocol: tpc }\n"),
        (head, "- { lable: a, adress: 192.0.2.1, prots: [443] }\n"),
        ("a: \"", "x\n\n"),
        ("", "? "),
        ("", "{ a: "),
        ("", "&a "),
    ] {
        let (told, more, length, asked) = work(head, line, MAX_BYTES / 128);
        let (told_of_more, more_of_more, longer, asked_more) = work(head, line, MAX_BYTES / 64);
        assert!(told <= MOST_TOLD && told_of_more == told, "{line:?}: {told}, {told_of_more}");
        assert!(longer <= length + 2 && length < 64 * 1024, "{line:?}: {length}, {longer} bytes");
        assert!(asked <= 3 * MOST_TOLD && asked_more == asked, "{line:?}: {asked}, {asked_more} comparisons");
        assert!(more_of_more <= 2 * (more + MOST_TOLD), "{line:?}: {more}, {more_of_more}");
        assert!(more_of_more > more || more == 0, "{line:?}: {more}, {more_of_more}");
    }
    let lines = MAX_BYTES / 128 / "lable: 1\n".len();
    // Each unknown key, and three that are missing.
    assert_eq!(work("", "lable: 1\n", MAX_BYTES / 128).1, lines + 3 - MOST_TOLD);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn arbitrary_bytes_in_a_file_are_answered_not_panicked_at(
        bytes in proptest::collection::vec(any::<u8>(), 0..400)
    ) {
        prop_assert!(!error_of(&bytes).is_empty());
    }
}
