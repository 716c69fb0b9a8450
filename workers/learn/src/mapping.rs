//! Knows: how a file, or an anonymous memory file, becomes bytes in the address space.
//! Knows not: what the bytes mean.
//! Called by: `bundled`, and whoever reads a data file.
//! Paper: none (OSDI'14 §4.6 only asks that a worker can read its part of the data).
//!
//! The one file of this crate with unsafe code.
#![allow(unsafe_code, reason = "mapping a file is unsafe in memmap2: the argument is at the one call")]

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::{Mmap, MmapOptions};

/// A file could not be opened or mapped.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {name}: {source}")]
pub struct MappingError {
    /// What was tried: `open` or `map`.
    pub action: &'static str,
    /// The file's name.
    pub name: String,
    /// What the system answered.
    pub source: io::Error,
}

/// A whole file as bytes, read from disk as they are touched.
///
/// Its bytes can become invalid in two ways only. Another process may write into the file: the bytes are untrusted anyway, every
/// one is read through `&[u8]` without assuming that it reads the same twice (the parser copies numbers out once), and no
/// invariant of ours rests on them. Another process may shorten the file: touching the lost pages raises SIGBUS, which ends
/// the process and corrupts nothing. So data files must not be truncated during training; our own memory files are sealed
/// against both.
#[derive(Debug)]
pub struct Mapping {
    name: String,
    /// `None` for an empty file: a mapping of length 0 does not exist.
    map: Option<Mmap>,
}

impl Mapping {
    /// Maps the file at `path`. Cost: three system calls; pages are read when they are first touched.
    ///
    /// # Errors
    /// The file does not exist, may not be read, or is not a regular file.
    pub fn open(path: &Path) -> Result<Self, MappingError> {
        let name = path.display().to_string();
        match File::open(path) {
            Ok(file) => Self::of_file(&file, name),
            Err(source) => Err(MappingError { action: "open", name, source }),
        }
    }

    /// Maps an open file, whatever its position; `name` is what messages will call it.
    ///
    /// # Errors
    /// It is not a regular file (a pipe has no length and looks empty), or the address space is full.
    pub fn of_file(file: &File, name: String) -> Result<Self, MappingError> {
        let map = file.metadata().and_then(|metadata| {
            if metadata.is_dir() {
                return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a directory"));
            }
            if !metadata.is_file() {
                return Err(io::Error::other("it is not a regular file; write the data to one first"));
            }
            if metadata.len() == 0 {
                return Ok(None);
            }
            // SAFETY: private, read-only, unmapped by its drop alone; what others may do to the file is argued at `Mapping`.
            let map = unsafe { MmapOptions::new().map_copy_read_only(file) }?;
            Ok(Some(map))
        });
        match map {
            Ok(map) => Ok(Self { name, map }),
            Err(source) => Err(MappingError { action: "map", name, source }),
        }
    }

    /// The bytes, `[file length]`. The file must not be truncated while they are in use.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }

    /// What messages call the file.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_length_is_not_taken_for_empty() {
        let error = Mapping::open(Path::new("/dev/null")).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Mapping::open(Path::new("no such file.svm")).unwrap_err();
        assert!(error.to_string().starts_with("cannot open no such file.svm: "), "{error}");
    }

    #[test]
    fn a_directory_cannot_be_mapped() {
        let error = Mapping::open(Path::new(".")).unwrap_err();
        assert!(error.to_string().contains("it is a directory"), "{error}");
    }
}
