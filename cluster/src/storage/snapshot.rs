//! Snapshots: the whole state at one position of the log, as plain files.
//!
//! ```text
//! magic, format                        8 bytes, u32
//! length and protobuf `Applied`        u32, bytes
//! length and protobuf record, ...      u32, bytes
//! end mark, number of records          u32 = 2^32 - 1, u64
//! SHA-256 of everything before         32 bytes
//! ```
//!
//! A file is written under a temporary name and synced. One from elsewhere is then only received: it counts, as `*.snap`, once
//! it is adopted, which Raft decides after it has dealt with whatever in the log contradicts it. Whatever has the plain name
//! is whole (INV-6). Two are kept.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use prost::Message;
use sha2::{Digest, Sha256};

use super::error::StoreError;
use super::files::{make_directory, sync_directory};
use super::record::{Applied, LogId};
use super::store::check_format;
use crate::pb;
use crate::state::{Record, RecordKey, TableId, Tables};

const MAGIC: &[u8; 8] = b"MSTRSNAP";
const FORMAT_VERSION: u32 = 1;
const END: u32 = u32::MAX;

/// No part of a snapshot is longer; a length beyond it is damage.
const MAX_PART: u32 = 1024 * 1024;

/// The extension of a snapshot that does not count yet.
const RECEIVED: &str = "received";

/// How many snapshots are kept.
const KEPT: usize = 2;

/// A complete snapshot on this disk. One that was received and is dropped without having been adopted is removed.
#[derive(Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Where it lies.
    pub path: PathBuf,
    /// The position it was taken at.
    pub applied: Applied,
    /// Its length in bytes.
    pub bytes: u64,
    /// The hash over everything but itself, which is the file's last 32 bytes.
    pub sha256: [u8; 32],
}

/// The directory of snapshots.
#[derive(Debug)]
pub struct SnapshotStore {
    directory: PathBuf,
    files: Mutex<Vec<Arc<SnapshotFile>>>,
    temporary: AtomicU64,
}

impl SnapshotStore {
    /// Opens the directory or makes it, removes half-written files, and checks every snapshot.
    ///
    /// A snapshot that is not what was written is renamed to `*.damaged` and no longer counts.
    ///
    /// # Errors
    /// When the disk refused.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let doing = |e| StoreError::io(format!("opening {}", directory.display()), e);
        make_directory(directory)?;
        let (mut files, mut unreadable) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(directory).map_err(doing)? {
            let path = entry.map_err(doing)?.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("tmp" | "received") => fs::remove_file(&path).map_err(doing)?,
                Some("snap") => match inspect(&path) {
                    Ok(file) => files.push(Arc::new(file)),
                    Err(error @ StoreError::Damaged { .. }) => {
                        tracing::error!(path = %path.display(), %error, "setting a damaged snapshot aside");
                        fs::rename(&path, path.with_extension("damaged")).map_err(doing)?;
                    }
                    Err(error @ StoreError::Io { .. }) => unreadable.push((path, error)),
                    Err(error) => return Err(error),
                },
                _ => {}
            }
        }
        // One that the disk does not give back is no loss when there is a newer one; names sort by index.
        for (path, error) in unreadable {
            if !files.iter().any(|file: &Arc<SnapshotFile>| file.path > path) {
                return Err(error);
            }
            tracing::error!(path = %path.display(), %error, "an old snapshot can not be read");
        }
        sync_directory(directory)?;
        files.sort_by_key(|file| file.applied.log_id);
        Ok(Self { directory: directory.to_owned(), files: Mutex::new(files), temporary: AtomicU64::new(0) })
    }

    /// The newest snapshot.
    #[must_use]
    pub fn latest(&self) -> Option<Arc<SnapshotFile>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).last().cloned()
    }

    /// All snapshots, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<SnapshotFile>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes a snapshot of these tables, which are this node's own; durable on return. Blocks.
    ///
    /// # Errors
    /// When the disk refused.
    pub fn build(&self, tables: &Tables, applied: &Applied) -> Result<Arc<SnapshotFile>, StoreError> {
        let mut incoming = self.receive()?;
        incoming.write_snapshot(tables, applied)?;
        self.adopt(&self.finish(incoming)?)
    }

    /// Begins a snapshot whose bytes come from elsewhere.
    ///
    /// # Errors
    /// When the disk refused.
    pub fn receive(&self) -> Result<IncomingSnapshot, StoreError> {
        let number = self.temporary.fetch_add(1, Ordering::Relaxed);
        let path = self.directory.join(format!("{}-{number}.tmp", std::process::id()));
        let file = File::create(&path).map_err(|e| StoreError::io(format!("creating {}", path.display()), e))?;
        Ok(IncomingSnapshot { path, file: BufWriter::with_capacity(64 * 1024, file), finished: false })
    }

    /// Checks what was received. It does not count yet, and is gone after a restart unless it is adopted. Blocks.
    ///
    /// # Errors
    /// When the bytes are not a whole snapshot, or the disk refused; the file is removed then.
    pub fn finish(&self, mut incoming: IncomingSnapshot) -> Result<Arc<SnapshotFile>, StoreError> {
        let doing = |e| StoreError::io(format!("finishing {}", incoming.path.display()), e);
        incoming.file.flush().and_then(|()| incoming.file.get_ref().sync_all()).map_err(doing)?;
        let mut file = inspect(&incoming.path)?;
        let path = incoming.path.with_extension(RECEIVED);
        fs::rename(&incoming.path, &path).map_err(doing)?;
        incoming.finished = true;
        file.path = path;
        Ok(Arc::new(file))
    }

    /// Makes a snapshot count as this node's own, durable on return: a received one gets its name, one of another directory
    /// is copied. Older ones than the newest two are removed. Blocks.
    ///
    /// # Errors
    /// When it can not be read, is not whole, or the disk refused.
    pub fn adopt(&self, file: &Arc<SnapshotFile>) -> Result<Arc<SnapshotFile>, StoreError> {
        if self.list().iter().any(|own| own.path == file.path) {
            return Ok(Arc::clone(file));
        }
        if file.path.parent() != Some(&self.directory) {
            let doing = |e| StoreError::io(format!("copying {}", file.path.display()), e);
            let mut incoming = self.receive()?;
            io::copy(&mut File::open(&file.path).map_err(doing)?, &mut incoming.file).map_err(doing)?;
            return self.adopt(&self.finish(incoming)?);
        }
        let (index, term) = file.applied.log_id.map_or((0, 0), |id| (id.index, id.term));
        let path = self.directory.join(format!("{index:020}-{term}.snap"));
        fs::rename(&file.path, &path).map_err(|e| StoreError::io(format!("naming {}", path.display()), e))?;
        sync_directory(&self.directory)?;
        let file =
            Arc::new(SnapshotFile { path, applied: file.applied.clone(), bytes: file.bytes, sha256: file.sha256 });

        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.retain(|other| other.path != file.path);
        files.push(Arc::clone(&file));
        files.sort_by_key(|file| file.applied.log_id);
        while files.len() > KEPT {
            let oldest = files.remove(0);
            if let Err(error) = fs::remove_file(&oldest.path) {
                tracing::warn!(path = %oldest.path.display(), %error, "an old snapshot can not be removed");
            }
        }
        Ok(file)
    }
}

/// A snapshot that is being written. Dropping it removes the file.
#[derive(Debug)]
pub struct IncomingSnapshot {
    path: PathBuf,
    file: BufWriter<File>,
    finished: bool,
}

impl IncomingSnapshot {
    /// Adds bytes as they came. Blocks.
    ///
    /// # Errors
    /// When the disk refused.
    pub fn write(&mut self, chunk: &[u8]) -> Result<(), StoreError> {
        self.file.write_all(chunk).map_err(|e| StoreError::io(format!("writing {}", self.path.display()), e))
    }

    fn write_snapshot(&mut self, tables: &Tables, applied: &Applied) -> Result<(), StoreError> {
        let mut hashing = Hashing { inner: &mut self.file, hasher: Sha256::new() };
        let write = |to: &mut Hashing<&mut BufWriter<File>>| -> io::Result<u64> {
            to.write_all(MAGIC)?;
            to.write_all(&FORMAT_VERSION.to_be_bytes())?;
            write_part(to, &applied.encode())?;
            let mut count = 0u64;
            for (key, record) in tables.iter() {
                let record = pb::SnapshotRecord {
                    table: u32::from(key.table.0),
                    key: key.key.clone(),
                    mod_index: record.mod_index,
                    value: record.value.clone(),
                };
                write_part(to, &record.encode_to_vec())?;
                count += 1;
            }
            to.write_all(&END.to_be_bytes())?;
            to.write_all(&count.to_be_bytes())?;
            Ok(count)
        };
        let written = write(&mut hashing);
        let hash: [u8; 32] = hashing.hasher.finalize().into();
        written
            .and_then(|_| self.file.write_all(&hash))
            .map_err(|e| StoreError::io(format!("writing {}", self.path.display()), e))
    }
}

impl Drop for IncomingSnapshot {
    fn drop(&mut self) {
        if !self.finished {
            // The next start removes it if this does not.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl SnapshotFile {
    /// A snapshot at any place, checked from its beginning to its end. Blocks.
    ///
    /// # Errors
    /// When it is none, is not whole, or the disk refused.
    pub fn inspect(path: &Path) -> Result<Self, StoreError> {
        inspect(path)
    }

    /// Reads the whole snapshot. Blocks.
    ///
    /// # Errors
    /// When it is not what was written, or the disk refused.
    pub fn load(&self) -> Result<Tables, StoreError> {
        let mut records = Vec::new();
        let file = read(&self.path, &mut |key, record| records.push((key, record)))?;
        Ok(Tables::restored(records, file.applied.fingerprint.history))
    }

    /// The position's log id.
    #[must_use]
    pub fn log_id(&self) -> Option<LogId> {
        self.applied.log_id
    }
}

impl Drop for SnapshotFile {
    fn drop(&mut self) {
        if self.path.extension().is_some_and(|extension| extension == RECEIVED) {
            // It is gone already if it was adopted under its name.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn inspect(path: &Path) -> Result<SnapshotFile, StoreError> {
    read(path, &mut |_, _| {})
}

fn read(path: &Path, visit: &mut dyn FnMut(RecordKey, Record)) -> Result<SnapshotFile, StoreError> {
    let damaged = |why: &str| StoreError::Damaged { what: path.display().to_string(), why: why.to_owned() };
    let doing = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged("it ends too early"),
        _ => StoreError::io(format!("reading {}", path.display()), error),
    };
    let file = File::open(path).map_err(doing)?;
    let bytes = file.metadata().map_err(doing)?.len();
    let mut reader = Hashing { inner: BufReader::with_capacity(64 * 1024, file), hasher: Sha256::new() };
    let mut magic = [0; 8];
    reader.read_exact(&mut magic).map_err(doing)?;
    if &magic != MAGIC {
        return Err(damaged("it is no snapshot"));
    }
    let format = read_number(&mut reader).map_err(doing)?;
    if format != FORMAT_VERSION {
        if !ends_with_its_hash(path).map_err(doing)? {
            return Err(damaged("its hash does not fit"));
        }
        check_format(&path.display().to_string(), Some(format.to_be_bytes().to_vec()), FORMAT_VERSION)?;
    }
    let head = read_part(&mut reader).map_err(doing)?.ok_or_else(|| damaged("it has no position"))?;
    let applied = Applied::decode(&head).map_err(|why| damaged(&why.to_string()))?;
    let mut count = 0u64;
    while let Some(part) = read_part(&mut reader).map_err(doing)? {
        let record = pb::SnapshotRecord::decode(part).map_err(|why| damaged(&why.to_string()))?;
        let table = u8::try_from(record.table).map_err(|_| damaged("a record belongs to no table"))?;
        visit(
            RecordKey { table: TableId(table), key: record.key },
            Record { mod_index: record.mod_index, value: record.value },
        );
        count += 1;
    }
    let mut promised = [0; 8];
    reader.read_exact(&mut promised).map_err(doing)?;
    if u64::from_be_bytes(promised) != count {
        return Err(damaged("records are missing"));
    }
    let computed: [u8; 32] = reader.hasher.finalize().into();
    let mut sha256 = [0; 32];
    reader.inner.read_exact(&mut sha256).map_err(doing)?;
    if sha256 != computed {
        return Err(damaged("its hash does not fit"));
    }
    if reader.inner.read(&mut [0]).map_err(doing)? != 0 {
        return Err(damaged("something follows its end"));
    }
    Ok(SnapshotFile { path: path.to_owned(), applied, bytes, sha256 })
}

/// Whether the last 32 bytes are the hash of what stands before them, which holds in every format.
fn ends_with_its_hash(path: &Path) -> io::Result<bool> {
    let bytes = fs::read(path)?;
    let Some((content, hash)) = bytes.split_last_chunk::<32>() else { return Ok(false) };
    Ok(Sha256::digest(content).as_slice() == hash)
}

fn write_part(to: &mut impl Write, part: &[u8]) -> io::Result<()> {
    let len = u32::try_from(part.len()).ok().filter(|len| *len <= MAX_PART);
    let len = len.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a part of a snapshot is too long"))?;
    to.write_all(&len.to_be_bytes())?;
    to.write_all(part)
}

/// The next part; `None` at the end mark.
fn read_part(from: &mut impl Read) -> io::Result<Option<Bytes>> {
    let len = read_number(from)?;
    if len == END {
        return Ok(None);
    }
    if len > MAX_PART {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut part = vec![0; len as usize];
    from.read_exact(&mut part)?;
    Ok(Some(part.into()))
}

fn read_number(from: &mut impl Read) -> io::Result<u32> {
    let mut number = [0; 4];
    from.read_exact(&mut number)?;
    Ok(u32::from_be_bytes(number))
}

/// Passes bytes through and hashes them.
struct Hashing<T> {
    inner: T,
    hasher: Sha256,
}

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::NodeId;

    fn tables(records: u64) -> (Tables, Applied) {
        let mut tables = Tables::default();
        for index in 1..=records {
            tables.put(TableId((index % 5) as u8), format!("key {index}"), vec![index as u8; 100], index);
        }
        let log_id = Some(LogId { term: 3, node: NodeId(1), index: records });
        let applied = Applied { log_id, fingerprint: tables.fingerprint(), ..Applied::default() };
        (tables, applied)
    }

    fn content(tables: &Tables) -> Vec<(RecordKey, Record)> {
        tables.iter().map(|(key, record)| (key.clone(), record.clone())).collect()
    }

    #[test]
    fn a_snapshot_holds_what_it_was_built_from() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = SnapshotStore::open(directory.path()).expect("opens");
        let (tables, applied) = tables(500);
        let built = store.build(&tables, &applied).expect("builds");
        let reopened = SnapshotStore::open(directory.path()).expect("opens").latest().expect("is there");
        assert_eq!(reopened, built);
        assert_eq!(reopened.applied, applied);
        let loaded = reopened.load().expect("loads");
        assert_eq!(content(&loaded), content(&tables));
        assert_eq!(loaded.fingerprint(), tables.fingerprint());
    }

    #[test]
    fn the_newest_two_are_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = SnapshotStore::open(directory.path()).expect("opens");
        for records in [30, 10, 20, 40] {
            let (tables, applied) = tables(records);
            store.build(&tables, &applied).expect("builds");
        }
        let kept: Vec<_> = store.list().iter().map(|file| file.applied.index()).collect();
        assert_eq!(kept, [30, 40]);
        assert_eq!(fs::read_dir(directory.path()).expect("lists").count(), 2);
    }

    #[test]
    fn a_damaged_snapshot_is_set_aside_wherever_the_damage_is() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = SnapshotStore::open(directory.path()).expect("opens");
        let (older, older_applied) = tables(3);
        store.build(&older, &older_applied).expect("builds");
        let (newer, newer_applied) = tables(4);
        let path = store.build(&newer, &newer_applied).expect("builds").path.clone();
        let whole = fs::read(&path).expect("reads");
        let mut images: Vec<Vec<u8>> = (0..whole.len()).map(|len| whole[..len].to_vec()).collect();
        for position in 0..whole.len() {
            let mut image = whole.clone();
            image[position] ^= 0x10;
            images.push(image);
        }
        let mut longer = whole.clone();
        longer.push(0);
        images.push(longer);
        for image in images {
            fs::write(&path, &image).expect("writes");
            let store = SnapshotStore::open(directory.path()).expect("opens");
            assert_eq!(store.latest().map(|file| file.applied.index()), Some(3));
            fs::remove_file(path.with_extension("damaged")).expect("was set aside");
        }
    }

    #[test]
    fn a_snapshot_of_a_newer_version_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = SnapshotStore::open(directory.path()).expect("opens");
        let (tables, applied) = tables(3);
        let path = store.build(&tables, &applied).expect("builds").path.clone();
        let mut image = fs::read(&path).expect("reads");
        image[11] = 2;
        let hash = Sha256::digest(&image[..image.len() - 32]);
        let end = image.len() - 32;
        image[end..].copy_from_slice(&hash);
        fs::write(&path, &image).expect("writes");
        let refused = SnapshotStore::open(directory.path()).expect_err("is refused");
        assert!(matches!(refused, StoreError::NewerFormat { found: 2, .. }), "{refused}");
        assert!(path.exists());
    }

    #[test]
    fn a_received_snapshot_counts_only_once_it_is_adopted() {
        let (here, there) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        let (tables, applied) = tables(9);
        let sent = SnapshotStore::open(there.path()).expect("opens").build(&tables, &applied).expect("builds");
        let receive = |store: &SnapshotStore| {
            let mut incoming = store.receive().expect("begins");
            for chunk in fs::read(&sent.path).expect("reads").chunks(100) {
                incoming.write(chunk).expect("writes");
            }
            store.finish(incoming).expect("is whole")
        };
        let store = SnapshotStore::open(here.path()).expect("opens");
        let received = receive(&store);
        assert_eq!(store.latest(), None);
        assert!(received.path.exists());
        let abandoned = received.path.clone();
        drop(received);
        assert!(!abandoned.exists(), "what Raft does not want does not stay");
        std::mem::forget(receive(&store));
        let store = SnapshotStore::open(here.path()).expect("opens");
        assert_eq!(store.latest(), None, "a crash before Raft has accepted it forgets it");
        let adopted = store.adopt(&receive(&store)).expect("is adopted");
        assert_eq!(store.latest(), Some(Arc::clone(&adopted)));
        assert_eq!(store.adopt(&adopted).expect("again is no change"), adopted);
        assert_eq!(SnapshotStore::open(here.path()).expect("opens").latest(), Some(adopted));
    }

    #[test]
    fn a_half_received_snapshot_leaves_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = SnapshotStore::open(directory.path()).expect("opens");
        let mut incoming = store.receive().expect("begins");
        incoming.write(b"MSTRSNAP\0\0\0\x01 and then nothing").expect("writes");
        assert!(matches!(store.finish(incoming), Err(StoreError::Damaged { .. })));
        drop(store.receive().expect("begins"));
        assert_eq!(fs::read_dir(directory.path()).expect("lists").count(), 0);
        let abandoned = store.receive().expect("begins");
        std::mem::forget(abandoned);
        SnapshotStore::open(directory.path()).expect("opens");
        assert_eq!(fs::read_dir(directory.path()).expect("lists").count(), 0);
    }
}
