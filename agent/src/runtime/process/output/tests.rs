use std::io::Write;
use std::os::unix::fs::MetadataExt;

use super::*;

struct Engine {
    directory: tempfile::TempDir,
    log: File,
}

impl Engine {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let log = File::options().create(true).append(true).open(directory.path().join(LOG)).unwrap();
        Self { directory, log }
    }

    fn says(&mut self, text: &str) {
        self.log.write_all(text.as_bytes()).unwrap();
    }

    fn reader(&self, since: Option<SystemTime>) -> Reader {
        Reader::open(self.directory.path(), since, 4).unwrap()
    }
}

fn texts(lines: &[Line]) -> Vec<&str> {
    lines.iter().map(|line| line.text.as_str()).collect()
}

fn all(reader: &mut Reader) -> Vec<Line> {
    let mut all = Vec::new();
    loop {
        let lines = reader.next(false).unwrap();
        if lines.is_empty() {
            return all;
        }
        all.extend(lines);
    }
}

#[test]
fn a_line_is_read_when_it_is_whole_or_when_the_engine_has_ended() {
    let mut engine = Engine::new();
    let mut reader = engine.reader(None);
    assert_eq!(all(&mut reader), []);
    engine.says("one\ntw");
    assert_eq!(texts(&all(&mut reader)), ["one"]);
    engine.says("o\n\nthree");
    assert_eq!(texts(&all(&mut reader)), ["two", ""]);
    assert_eq!(texts(&reader.next(true).unwrap()), ["three"]);
    assert_eq!(reader.next(true).unwrap(), []);
}

#[test]
fn who_comes_back_gets_what_it_has_not_kept_with_the_same_times_and_nothing_twice() {
    let mut engine = Engine::new();
    let mut reader = engine.reader(None);
    engine.says("a\nb\nc\n");
    let first = all(&mut reader);
    engine.says("d\ne\n");
    let second = all(&mut reader);
    drop(reader);
    engine.says("f\n");
    // It has kept `b`, and gets it once more because times are asked for inclusively.
    let again = all(&mut engine.reader(Some(first[1].at)));
    assert_eq!(texts(&again), ["b", "c", "d", "e", "f"]);
    assert_eq!(again[1..4], [first[2].clone(), second[0].clone(), second[1].clone()]);
    assert!(again.is_sorted_by(|one, other| one.at < other.at));
    let end = again[4].at + Duration::from_nanos(1);
    assert_eq!(all(&mut engine.reader(Some(end))), []);
    assert_eq!(texts(&all(&mut engine.reader(None))), ["a", "b", "c", "d", "e", "f"]);
}

#[test]
fn a_file_that_was_made_shorter_is_read_from_its_beginning() {
    let mut engine = Engine::new();
    let mut reader = engine.reader(None);
    engine.says("long ago\n");
    let before = all(&mut reader);
    engine.log.set_len(0).unwrap();
    engine.says("new\n");
    let after = all(&mut reader);
    assert_eq!(texts(&after), ["new"]);
    assert!(after[0].at > before[0].at);
    drop(reader);
    engine.log.set_len(0).unwrap();
    engine.says("x\n");
    assert_eq!(texts(&all(&mut engine.reader(None))), ["x"]);
}

#[test]
fn the_space_of_what_has_been_read_is_given_back() {
    let mut engine = Engine::new();
    let mut reader = engine.reader(None);
    let line = format!("{}\n", "x".repeat(999));
    let mut count = 0;
    for _ in 0..24 {
        engine.says(&line.repeat(1000));
        count += all(&mut reader).len();
    }
    assert_eq!(count, 24_000);
    let about = engine.log.metadata().unwrap();
    let bound = 2 * SPARE + 4 * (1 << 20);
    assert!(about.blocks() * 512 < bound, "{} of {} bytes", about.blocks() * 512, about.len());
    // What comes after is read as before, by this reader and by the next, with and without marks.
    engine.says("end\n");
    let last = all(&mut reader);
    assert_eq!(texts(&last), ["end"]);
    assert_eq!(all(&mut engine.reader(Some(last[0].at))), last);
    std::fs::remove_file(engine.directory.path().join("engine.marks")).unwrap();
    let mut reader = engine.reader(None);
    let rest = all(&mut reader);
    assert_eq!(rest.last().unwrap().text, "end");
    assert!(rest.iter().all(|line| !line.text.contains('\0')));
}

#[test]
fn a_line_without_end_is_handed_on_in_parts() {
    let mut engine = Engine::new();
    let mut reader = engine.reader(None);
    engine.says(&"x".repeat(READ + 10));
    engine.says("\ny\n");
    let lines = all(&mut reader);
    assert_eq!(lines.iter().map(|line| line.text.len()).collect::<Vec<_>>(), [READ, 10, 1]);
}

#[test]
fn marks_that_make_no_sense_are_forgotten() {
    let mut engine = Engine::new();
    engine.says("a\nb\n");
    for bad in [
        "x",
        "1 2\n",
        "5 0 4 0\n",
        "5 4 0 1\n",
        "9 0 400 1\n",
        "18446744073709551615 0 2 1\n",
        "1 0 2 18446744073709551615\n",
    ] {
        std::fs::write(engine.directory.path().join("engine.marks"), bad).unwrap();
        let lines = all(&mut engine.reader(None));
        assert_eq!(texts(&lines), ["a", "b"], "{bad}");
    }
}

#[test]
fn the_marks_of_a_talkative_engine_stay_few() {
    let mut engine = Engine::new();
    let mut reader = engine.reader(None);
    for _ in 0..5000 {
        engine.says("x\n");
        reader.next(false).unwrap();
    }
    let marks = std::fs::read_to_string(engine.directory.path().join("engine.marks")).unwrap();
    assert!(marks.lines().count() <= 2 * 1024 + 16, "{}", marks.lines().count());
    assert!(marks.lines().count() >= 1024);
}
