//! Room on the disk: what is free, what running transfers still want of it, and what must stay free.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::error::FilesError;

/// After how many written bytes the disk is looked at again.
pub(super) const LOOK_EVERY: u64 = 64 << 20;

/// What a file system has, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Space {
    pub(super) total: u64,
    pub(super) free: u64,
}

/// Asks the file system that a path lies on; where the path does not exist yet, the nearest directory above it is asked.
pub(super) fn space(path: &Path) -> io::Result<Space> {
    let mut asked = path;
    loop {
        match rustix::fs::statvfs(asked) {
            Ok(found) => {
                let total = found.f_blocks.saturating_mul(found.f_frsize);
                return Ok(Space { total, free: found.f_bavail.saturating_mul(found.f_frsize) });
            }
            Err(rustix::io::Errno::NOENT) => match asked.parent() {
                Some(parent) if parent.as_os_str().is_empty() => asked = Path::new("."),
                Some(parent) => asked = parent,
                None => return Err(rustix::io::Errno::NOENT.into()),
            },
            Err(error) => return Err(error.into()),
        }
    }
}

/// The room on the disk of a directory. Clones share what is promised.
#[derive(Clone, Debug)]
pub(super) struct Room {
    directory: PathBuf,
    /// What must stay free.
    floor: u64,
    promised: Arc<Mutex<u64>>,
}

impl Room {
    pub(super) fn new(directory: &Path, floor: u64) -> Self {
        Self { directory: directory.to_owned(), floor, promised: Arc::default() }
    }

    fn free(&self) -> Result<u64, FilesError> {
        let found = space(&self.directory).map_err(|e| FilesError::io("asking for the room on the disk", e))?;
        Ok(found.free)
    }

    /// Promises room to one transfer: its declared bytes times a factor, besides what others have been promised and what must
    /// stay free.
    ///
    /// # Errors
    /// `NoRoom`.
    pub(super) fn promise(&self, declared: u64, factor: u64) -> Result<Promise, FilesError> {
        let free = self.free()?;
        let wanted = declared.saturating_mul(factor);
        let mut promised = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
        let needed = wanted.saturating_add(self.floor).saturating_add(*promised);
        if free < needed {
            return Err(FilesError::NoRoom(format!(
                "there is not enough room on this node's disk: {} are needed, {} are free",
                human(needed),
                human(free)
            )));
        }
        *promised = promised.saturating_add(wanted);
        drop(promised);
        Ok(Promise { promised: Arc::clone(&self.promised), left: Mutex::new(wanted) })
    }

    /// Promises no room at all.
    pub(super) fn promise_nothing(&self) -> Promise {
        Promise { promised: Arc::clone(&self.promised), left: Mutex::new(0) }
    }

    /// Whether what must stay free still is.
    ///
    /// # Errors
    /// `NoRoom`.
    pub(super) fn look(&self) -> Result<(), FilesError> {
        let free = self.free()?;
        if free < self.floor {
            return Err(FilesError::NoRoom(format!(
                "this node's disk has only {} left, and {} must stay free",
                human(free),
                human(self.floor)
            )));
        }
        Ok(())
    }
}

/// Room that has been promised to one transfer. It is given back as it fills up, and the rest when this is dropped.
#[derive(Debug)]
pub(super) struct Promise {
    promised: Arc<Mutex<u64>>,
    left: Mutex<u64>,
}

impl Promise {
    /// So many bytes of it have been written: they are no longer free, so nobody has to keep them free.
    pub(super) fn written(&self, bytes: u64) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let used = bytes.min(*left);
        *left -= used;
        drop(left);
        self.give_back(used);
    }

    fn give_back(&self, bytes: u64) {
        let mut promised = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
        *promised = promised.saturating_sub(bytes);
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let left = *self.left.lock().unwrap_or_else(PoisonError::into_inner);
        self.give_back(left);
    }
}

/// A number of bytes for people.
pub(super) fn human(bytes: u64) -> String {
    let tenths = |unit: u64| bytes / (unit / 10);
    match bytes {
        0..0x10_0000 => format!("{bytes} bytes"),
        0x10_0000..0x4000_0000 => format!("{}.{} MiB", tenths(1 << 20) / 10, tenths(1 << 20) % 10),
        _ => format!("{}.{} GiB", tenths(1 << 30) / 10, tenths(1 << 30) % 10),
    }
}

#[cfg(test)]
mod tests {
    use super::super::error::ErrorKind;
    use super::*;

    #[test]
    fn what_is_promised_to_one_is_not_free_for_another() {
        let home = tempfile::tempdir().unwrap();
        let free = space(home.path()).unwrap().free;
        let room = Room::new(home.path(), 0);
        let most = free / 4 * 3;
        let first = room.promise(most / 2, 2).unwrap();
        assert_eq!(room.promise(most, 1).unwrap_err().kind(), ErrorKind::NoRoom);
        first.written(u64::MAX);
        drop(room.promise(most, 1).unwrap());
        drop(first);
        drop(room.promise(most, 1).unwrap());
        assert_eq!(room.promise(u64::MAX, 2).unwrap_err().kind(), ErrorKind::NoRoom);
        assert_eq!(*room.promised.lock().unwrap(), 0);
    }

    #[test]
    fn what_must_stay_free_is_not_given_away() {
        let home = tempfile::tempdir().unwrap();
        let room = Room::new(&home.path().join("not/yet/there"), u64::MAX);
        assert_eq!(room.promise(0, 1).unwrap_err().kind(), ErrorKind::NoRoom);
        assert_eq!(room.look().unwrap_err().kind(), ErrorKind::NoRoom);
    }

    #[test]
    fn sizes_are_written_for_people() {
        assert_eq!(human(17), "17 bytes");
        assert_eq!(human(3 << 19), "1.5 MiB");
        assert_eq!(human(2 << 30), "2.0 GiB");
        assert!(human(u64::MAX).ends_with(" GiB"));
    }
}
