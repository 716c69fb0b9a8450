//! Weights to a file.
//! Knows what a path may lead to and how a file is replaced; not what the weights mean.
//! Called before training, to find out whether the file can be written, and after it.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::Access;

/// Links that are followed until something else is found, as many as Linux follows.
const LINKS_MAX: usize = 40;

/// What a path leads to.
enum Target {
    /// What standard output is, whatever that is: written through it, so that what is printed later comes behind.
    StandardOutput,
    /// A device or a pipe: written as it is.
    Special(PathBuf),
    /// A regular file, or none yet: replaced as a whole.
    File(PathBuf),
}

/// Finds out whether a model could be written to `path`. Changes nothing that is there.
///
/// # Errors
/// It could not: there is no such folder, it may not be written to, or the path is a folder.
pub(super) fn check(path: &Path) -> anyhow::Result<()> {
    let tried = match target(path) {
        Ok(Target::StandardOutput) => Ok(()),
        Ok(Target::Special(path)) => rustix::fs::access(&path, Access::WRITE_OK).map_err(io::Error::from),
        Ok(Target::File(path)) => beside(&path).and_then(|(_, name)| fs::remove_file(name)),
        Err(error) => Err(error),
    };
    tried.with_context(|| about(path))
}

/// Writes the model. A regular file is replaced at once: whoever reads it sees an old model or this one, never half of one.
///
/// # Errors
/// It cannot be written; what was there is still there.
pub(super) fn write(path: &Path, weights: &[f64]) -> anyhow::Result<()> {
    let mut text = String::new();
    for (index, weight) in (1..).zip(weights) {
        // `{}` of a double reads back to the same bits.
        let _ = writeln!(text, "{index} {weight}");
    }
    let written = match target(path) {
        Ok(Target::StandardOutput) => {
            let mut out = io::stdout().lock();
            out.write_all(text.as_bytes()).and_then(|()| out.flush())
        }
        Ok(Target::Special(path)) => {
            OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(text.as_bytes()))
        }
        Ok(Target::File(path)) => replace(&path, &text),
        Err(error) => Err(error),
    };
    written.with_context(|| about(path))
}

fn about(path: &Path) -> String {
    format!("cannot write the model to {}", path.display())
}

fn target(path: &Path) -> io::Result<Target> {
    let found = match fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return absent(path),
        Err(error) => return Err(error),
    };
    let out = rustix::fs::fstat(io::stdout())?;
    if (found.dev(), found.ino()) == (out.st_dev, out.st_ino) {
        Ok(Target::StandardOutput)
    } else if found.is_dir() {
        Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder; name a file in it"))
    } else if found.is_file() {
        fs::canonicalize(path).map(Target::File)
    } else {
        Ok(Target::Special(path.to_owned()))
    }
}

/// A file that is to be made; links that lead to it stay.
fn absent(path: &Path) -> io::Result<Target> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let folder = fs::canonicalize(folder).map_err(|error| {
            io::Error::new(error.kind(), format!("its folder {} cannot be used: {error}", folder.display()))
        })?;
        let name = path.file_name().ok_or_else(|| io::Error::other("it names no file"))?;
        let link = fs::read_link(folder.join(name));
        let Ok(to) = link else { return Ok(Target::File(folder.join(name))) };
        path = folder.join(to);
    }
    Err(io::Error::other("its links lead in a circle"))
}

/// A new file in the folder of this one, under a name that no other process takes.
fn beside(path: &Path) -> io::Result<(File, PathBuf)> {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    let name = path.with_file_name(name);
    // One that is left of a process that was killed, and had this number.
    let _ = fs::remove_file(&name);
    let file = OpenOptions::new().write(true).create_new(true).open(&name);
    file.map(|file| (file, name))
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let (mut file, name) = beside(path)?;
    let mut replace = || {
        if let Ok(old) = fs::metadata(path) {
            file.set_permissions(old.permissions())?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&name, path)
    };
    replace().inspect_err(|_| {
        // The error says what matters.
        let _ = fs::remove_file(&name);
    })
}
