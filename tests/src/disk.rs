//! What a disk may hold after a loss of power: rebuilt from the recording of `shim/disk.c`.
//!
//! A write is safe once a barrier on its file has ended that began after the write had. A name is safe once its directory
//! has been synced. Of everything else a loss of power keeps nothing, a prefix, or any part.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};

/// Which part of what was not yet safe survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survives {
    /// Nothing: the harshest cache.
    Nothing,
    /// A prefix, in the order in which it was written.
    Prefix,
    /// Any half of the writes, some of them torn between sectors; of the changes of names a prefix, as journals do.
    RandomHalf,
}

/// One recorded step.
#[derive(Clone, Debug)]
pub struct Step {
    /// Where it begins in the recording; barriers refer to it.
    position: u64,
    /// What happened.
    pub event: Event,
}

/// What happened in a step.
#[derive(Clone, Debug)]
pub enum Event {
    /// A file or directory was opened, or made.
    Open {
        /// The descriptor.
        fd: i32,
        /// The path.
        path: PathBuf,
        /// Whether it was made empty.
        truncated: bool,
        /// Whether it is a directory.
        directory: bool,
    },
    /// A descriptor was closed.
    Close(i32),
    /// Bytes were written.
    Write {
        /// The descriptor.
        fd: i32,
        /// Where in the file.
        offset: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// The file was given this length.
    Truncate(i32, u64),
    /// A barrier ended that began when the recording had this length.
    Sync(i32, u64),
    /// A name was changed.
    Rename(PathBuf, PathBuf),
    /// A name was removed, of a file or an empty directory.
    Remove(PathBuf),
    /// A directory was made.
    MakeDirectory(PathBuf),
    /// The program told its client something.
    Ack(String),
}

const O_TRUNC: u64 = 0o1000;
const HEAD: usize = 25;

/// Reads a recording. A record that was cut off at the end is left out.
///
/// # Errors
/// When it can not be read or holds something else.
pub fn read_trace(path: &Path) -> io::Result<Vec<Step>> {
    let bytes = std::fs::read(path)?;
    let mut steps = Vec::new();
    let mut at = 0;
    while let Some(head) = bytes.get(at..at + HEAD) {
        let number = |from: usize| u64::from_le_bytes(head[from..from + 8].try_into().expect("eight bytes"));
        let fd = i32::from_le_bytes(head[1..5].try_into().expect("four bytes"));
        let (a, b) = (number(5), number(13));
        let length = u32::from_le_bytes(head[21..25].try_into().expect("four bytes")) as usize;
        let Some(data) = bytes.get(at + HEAD..at + HEAD + length) else { break };
        let text = || String::from_utf8_lossy(data).into_owned();
        let event = match head[0] {
            1 => Event::Open { fd, path: text().into(), truncated: a & O_TRUNC != 0, directory: b == 1 },
            2 => Event::Close(fd),
            3 => Event::Write { fd, offset: a, bytes: data.to_vec() },
            4 => Event::Truncate(fd, a),
            5 => Event::Sync(fd, a),
            6 => {
                let text = text();
                let (from, to) = text.split_once('\0').ok_or_else(|| io::Error::other("half a rename"))?;
                Event::Rename(from.into(), to.into())
            }
            7 | 9 => Event::Remove(text().into()),
            8 => Event::MakeDirectory(text().into()),
            10 => Event::Ack(text()),
            other => return Err(io::Error::other(format!("unknown record {other} at {at}"))),
        };
        steps.push(Step { position: at as u64, event });
        at += HEAD + length;
    }
    Ok(steps)
}

type Inode = usize;

#[derive(Clone, Debug)]
enum DataChange {
    Write(u64, Vec<u8>),
    Length(u64),
}

#[derive(Clone, Debug)]
enum NameChange {
    Set(String, Inode),
    Remove(String),
    Rename(String, String),
}

#[derive(Clone, Debug, Default)]
struct Node {
    directory: bool,
    content: Vec<u8>,
    names: BTreeMap<String, Inode>,
    data_changes: Vec<(u64, DataChange)>,
    name_changes: Vec<(u64, NameChange)>,
}

/// A disk at one moment of a recording: what is safe, and what is not yet.
#[derive(Clone, Debug)]
pub struct Disk {
    root: PathBuf,
    nodes: Vec<Node>,
    /// The names as programs see them now.
    visible: HashMap<PathBuf, Inode>,
    open: HashMap<i32, Inode>,
}

impl Disk {
    /// An empty directory, which is safe.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        let node = Node { directory: true, ..Node::default() };
        Self { root: root.to_owned(), nodes: vec![node], visible: [(root.to_owned(), 0)].into(), open: HashMap::new() }
    }

    /// Takes the next step of the recording.
    pub fn advance(&mut self, step: &Step) {
        match &step.event {
            Event::Open { fd, path, truncated, directory } => {
                let inode = match self.visible.get(path) {
                    Some(inode) => *inode,
                    None => self.make(path, *directory, step.position),
                };
                if *truncated && !self.nodes[inode].directory {
                    self.nodes[inode].data_changes.push((step.position, DataChange::Length(0)));
                }
                self.open.insert(*fd, inode);
            }
            Event::Close(fd) => {
                self.open.remove(fd);
            }
            Event::Write { fd, offset, bytes } => {
                self.change_data(*fd, step.position, DataChange::Write(*offset, bytes.clone()));
            }
            Event::Truncate(fd, length) => self.change_data(*fd, step.position, DataChange::Length(*length)),
            Event::Sync(fd, began) => {
                if let Some(inode) = self.open.get(fd) {
                    self.nodes[*inode].settle(*began);
                }
            }
            Event::MakeDirectory(path) => {
                self.make(path, true, step.position);
            }
            Event::Remove(path) => {
                self.visible.remove(path);
                self.change_name(path, step.position, NameChange::Remove(name(path)));
            }
            Event::Rename(from, to) => {
                let moved: Vec<_> = self.visible.keys().filter(|path| path.starts_with(from)).cloned().collect();
                for path in moved {
                    if let (Some(inode), Ok(rest)) = (self.visible.remove(&path), path.strip_prefix(from)) {
                        let target = if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) };
                        self.visible.insert(target, inode);
                    }
                }
                if from.parent() == to.parent() {
                    self.change_name(from, step.position, NameChange::Rename(name(from), name(to)));
                } else if let Some(inode) = self.visible.get(to).copied() {
                    self.change_name(to, step.position, NameChange::Set(name(to), inode));
                    self.change_name(from, step.position, NameChange::Remove(name(from)));
                }
            }
            Event::Ack(_) => {}
        }
    }

    /// Writes what a loss of power at this moment may leave into an empty directory.
    ///
    /// # Errors
    /// When the directory can not be written.
    pub fn lose_power(&self, survives: Survives, seed: u64, into: &Path) -> io::Result<()> {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut after = self.clone();
        let positions = |nodes: &[Node]| {
            let data = nodes.iter().flat_map(|node| node.data_changes.iter().map(|(position, _)| *position));
            let names = nodes.iter().flat_map(|node| node.name_changes.iter().map(|(position, _)| *position));
            let mut all: Vec<u64> = data.chain(names).collect();
            all.sort_unstable();
            all
        };
        let pending = positions(&after.nodes);
        let kept = if pending.is_empty() { 0 } else { random.random_range(0..=pending.len()) };
        let prefix_end = pending.get(kept).copied().unwrap_or(u64::MAX);
        for node in &mut after.nodes {
            match survives {
                Survives::Nothing => {}
                Survives::Prefix => node.settle(prefix_end),
                Survives::RandomHalf => {
                    node.settle_names(prefix_end);
                    for (_, change) in std::mem::take(&mut node.data_changes) {
                        if random.random_bool(0.5) {
                            node.keep(&change, random.random_bool(0.2).then_some(&mut random));
                        }
                    }
                }
            }
        }
        after.write(0, into)
    }

    /// How many changes a loss of power at this moment could undo.
    #[must_use]
    pub fn not_safe(&self) -> usize {
        self.nodes.iter().map(|node| node.data_changes.len() + node.name_changes.len()).sum()
    }

    fn write(&self, inode: Inode, into: &Path) -> io::Result<()> {
        for (name, child) in &self.nodes[inode].names {
            let path = into.join(name);
            if self.nodes[*child].directory {
                std::fs::create_dir(&path)?;
                self.write(*child, &path)?;
            } else {
                std::fs::write(&path, &self.nodes[*child].content)?;
            }
        }
        Ok(())
    }

    fn make(&mut self, path: &Path, directory: bool, position: u64) -> Inode {
        let inode = self.nodes.len();
        self.nodes.push(Node { directory, ..Node::default() });
        self.visible.insert(path.to_owned(), inode);
        self.change_name(path, position, NameChange::Set(name(path), inode));
        inode
    }

    fn change_name(&mut self, path: &Path, position: u64, change: NameChange) {
        let parent = path.parent().unwrap_or(&self.root);
        if let Some(inode) = self.visible.get(parent) {
            self.nodes[*inode].name_changes.push((position, change));
        }
    }

    fn change_data(&mut self, fd: i32, position: u64, change: DataChange) {
        if let Some(inode) = self.open.get(&fd) {
            self.nodes[*inode].data_changes.push((position, change));
        }
    }
}

impl Node {
    /// Everything before this position of the recording is safe now.
    fn settle(&mut self, before: u64) {
        let safe = self.data_changes.partition_point(|(position, _)| *position < before);
        for (_, change) in self.data_changes.drain(..safe).collect::<Vec<_>>() {
            self.keep(&change, None);
        }
        self.settle_names(before);
    }

    fn settle_names(&mut self, before: u64) {
        let safe = self.name_changes.partition_point(|(position, _)| *position < before);
        for (_, change) in self.name_changes.drain(..safe).collect::<Vec<_>>() {
            match change {
                NameChange::Set(name, inode) => {
                    self.names.insert(name, inode);
                }
                NameChange::Remove(name) => {
                    self.names.remove(&name);
                }
                NameChange::Rename(from, to) => {
                    if let Some(inode) = self.names.remove(&from) {
                        self.names.insert(to, inode);
                    }
                }
            }
        }
    }

    fn keep(&mut self, change: &DataChange, torn: Option<&mut SmallRng>) {
        const SECTOR: usize = 512;
        match change {
            DataChange::Length(length) => self.content.resize(*length as usize, 0),
            DataChange::Write(offset, bytes) => {
                let start = *offset as usize;
                if self.content.len() < start + bytes.len() {
                    self.content.resize(start + bytes.len(), 0);
                }
                let Some(random) = torn else {
                    self.content[start..start + bytes.len()].copy_from_slice(bytes);
                    return;
                };
                let mut at = 0;
                while at < bytes.len() {
                    // To the next boundary of a sector, which the disk writes whole or not at all.
                    let end = bytes.len().min(at + SECTOR - (start + at) % SECTOR);
                    if random.random_bool(0.5) {
                        self.content[start + at..start + end].copy_from_slice(&bytes[at..end]);
                    }
                    at = end;
                }
            }
        }
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Moments of a recording at which to cut: a quarter of them anywhere, a quarter where names or lengths change, a quarter
/// while the program starts, and a quarter just after something rare was promised.
pub fn cuts(steps: &[Step], number: usize, random: &mut impl Rng) -> Vec<usize> {
    let positions = |wanted: fn(&Event) -> bool| -> Vec<usize> {
        steps.iter().enumerate().filter(|(_, step)| wanted(&step.event)).map(|(at, _)| at).collect()
    };
    let names = positions(|event| {
        matches!(event, Event::Rename(..) | Event::Remove(_) | Event::Truncate(..) | Event::MakeDirectory(_))
    });
    // The first thing that a node opens.
    let starts = positions(|event| matches!(event, Event::Open { path, .. } if path.ends_with("lock")));
    let promises = positions(|event| {
        let rare = ["voted", "truncated", "purged", "snapshot", "found "];
        matches!(event, Event::Ack(line) if rare.iter().any(|word| line.starts_with(word)))
    });
    let mut cuts: Vec<usize> = (0..number)
        .map(|turn| {
            let (near, within) = match turn % 4 {
                1 => (&names[..], 3),
                2 => (&starts[..], 80),
                3 => (&promises[..], 3),
                _ => (&[][..], 1),
            };
            match near.len() {
                0 => random.random_range(0..=steps.len()),
                len => (near[random.random_range(0..len)] + random.random_range(0..within)).min(steps.len()),
            }
        })
        .collect();
    cuts.sort_unstable();
    cuts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk_after(events: Vec<Event>) -> Disk {
        let mut disk = Disk::new(Path::new("/r"));
        for (position, event) in (0..).zip(events) {
            disk.advance(&Step { position, event });
        }
        disk
    }

    fn create(fd: i32, path: &str) -> Event {
        Event::Open { fd, path: path.into(), truncated: true, directory: false }
    }

    fn directory(fd: i32, path: &str) -> Event {
        Event::Open { fd, path: path.into(), truncated: false, directory: true }
    }

    fn write(fd: i32, offset: u64, bytes: &[u8]) -> Event {
        Event::Write { fd, offset, bytes: bytes.to_vec() }
    }

    fn left(disk: &Disk, survives: Survives) -> Vec<(String, Vec<u8>)> {
        let into = tempfile::tempdir().expect("a directory");
        disk.lose_power(survives, 7, into.path()).expect("writes");
        let mut files: Vec<_> = std::fs::read_dir(into.path())
            .expect("lists")
            .map(|entry| entry.expect("an entry").path())
            .map(|path| (name(&path), std::fs::read(&path).expect("reads")))
            .collect();
        files.sort();
        files
    }

    #[test]
    fn only_what_a_barrier_covered_is_sure_to_survive() {
        let disk = disk_after(vec![
            create(3, "/r/a"),
            directory(4, "/r"),
            Event::Sync(4, 2),
            write(3, 0, b"old"),
            Event::Sync(3, 4),
            write(3, 0, b"new"),
        ]);
        assert_eq!(left(&disk, Survives::Nothing), [("a".to_owned(), b"old".to_vec())]);
    }

    #[test]
    fn a_barrier_does_not_cover_what_came_after_its_beginning() {
        let disk = disk_after(vec![
            create(3, "/r/a"),
            directory(4, "/r"),
            Event::Sync(4, 2),
            write(3, 0, b"x"),
            Event::Sync(3, 3),
        ]);
        assert_eq!(left(&disk, Survives::Nothing), [("a".to_owned(), b"".to_vec())]);
    }

    #[test]
    fn a_name_needs_its_directory_synced() {
        let mut events = vec![create(3, "/r/a.tmp"), write(3, 0, b"x"), Event::Sync(3, 2)];
        assert!(left(&disk_after(events.clone()), Survives::Nothing).is_empty());
        events.push(Event::Rename("/r/a.tmp".into(), "/r/a".into()));
        assert!(left(&disk_after(events.clone()), Survives::Nothing).is_empty());
        events.push(directory(4, "/r"));
        events.push(Event::Sync(4, 5));
        assert_eq!(left(&disk_after(events), Survives::Nothing), [("a".to_owned(), b"x".to_vec())]);
    }

    #[test]
    fn files_keep_their_content_when_their_directory_is_renamed() {
        let disk = disk_after(vec![
            Event::MakeDirectory("/r/d.new".into()),
            create(3, "/r/d.new/f"),
            write(3, 0, b"x"),
            Event::Rename("/r/d.new".into(), "/r/d".into()),
            create(5, "/r/d/g"),
            write(5, 0, b"y"),
        ]);
        let into = tempfile::tempdir().expect("a directory");
        let mut all = disk;
        for node in &mut all.nodes {
            node.settle(u64::MAX);
        }
        all.lose_power(Survives::Nothing, 0, into.path()).expect("writes");
        assert_eq!(std::fs::read(into.path().join("d/f")).expect("reads"), b"x");
        assert_eq!(std::fs::read(into.path().join("d/g")).expect("reads"), b"y");
    }
}
