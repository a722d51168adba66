//! Archives for tests, the wicked ones among them.

use std::io::{Cursor, Read, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{EntryType, Header};
use zip::write::SimpleFileOptions;

/// A tar with these regular files. Names are written as they are, even those that no honest program would write.
pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        member(&mut builder, name, EntryType::Regular, "", content);
    }
    builder.into_inner().unwrap()
}

/// A tar that is built by a function.
pub(crate) fn tar_with(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    build(&mut builder);
    builder.into_inner().unwrap()
}

pub(crate) fn member(builder: &mut tar::Builder<Vec<u8>>, name: &str, kind: EntryType, link: &str, content: &[u8]) {
    let mut header = Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o4777);
    header.set_size(content.len() as u64);
    header.set_cksum();
    builder.append(&header, content).unwrap();
}

pub(crate) fn gzip(content: impl Read) -> Vec<u8> {
    let mut content = content;
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    std::io::copy(&mut content, &mut encoder).unwrap();
    encoder.finish().unwrap()
}

/// A zip with these members and Unix modes; a name that ends in `/` is a directory.
pub(crate) fn zip(members: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, mode, content) in members {
        let options = SimpleFileOptions::default().unix_permissions(*mode);
        if name.ends_with('/') {
            writer.add_directory(*name, options).unwrap();
        } else if mode & 0o170_000 == 0o120_000 {
            writer.add_symlink(*name, String::from_utf8_lossy(content), options).unwrap();
        } else {
            writer.start_file(*name, options).unwrap();
            writer.write_all(content).unwrap();
        }
    }
    writer.finish().unwrap().into_inner()
}

/// The same zip, with a name replaced by another of the same length wherever it stands.
pub(crate) fn renamed(mut archive: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut at = 0;
    while let Some(found) = archive[at..].windows(from.len()).position(|window| window == from.as_bytes()) {
        archive[at + found..at + found + to.len()].copy_from_slice(to.as_bytes());
        at += found + to.len();
    }
    archive
}
