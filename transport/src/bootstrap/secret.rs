//! The secret of a cluster: what its nodes prove to each other that they know.
//! Knows where it may come from and what is wrong with a bad one; never prints it. Proofs are `handshake`'s.
//! Called by whoever starts a node; held by both sides of the bootstrap.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use zeroize::Zeroizing;

/// Bytes of a secret, at least: 16 random bytes cannot be guessed. That they are random nobody can check.
pub const SECRET_BYTES_MIN: usize = 16;
/// Bytes of a secret, at most: whatever is longer is another file.
pub const SECRET_BYTES_MAX: usize = 4096;

/// Bytes that a random secret is drawn from.
const RANDOM_BYTES: usize = 32;
/// Group and others, in a file's mode.
const ANYBODY_ELSE: u32 = 0o077;

/// The secret of a cluster. Clones share one copy, which is overwritten when the last one is dropped.
#[derive(Clone)]
pub struct Secret(Arc<Zeroizing<Vec<u8>>>);

/// Why there is no secret.
#[derive(Debug, Error)]
pub enum SecretError {
    /// Too few bytes to be one, or too many.
    #[error(
        "a cluster secret has {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes, and this one has {found}; make one with \
         `openssl rand -hex 32`"
    )]
    Length {
        /// Its bytes, as far as they were read.
        found: usize,
    },
    /// A byte that no environment variable can hold.
    #[error(
        "a cluster secret is text, and this one has a zero byte, which no environment variable can hold; make one with \
         `openssl rand -hex 32`"
    )]
    ZeroByte,
    /// The file cannot be read.
    #[error("cannot read the cluster secret in {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The name of something else.
    #[error("cannot read the cluster secret in {}: it is not a plain file", path.display())]
    NotAFile {
        /// Which.
        path: PathBuf,
    },
    /// Others than its owner may read the file.
    #[error(
        "the cluster secret in {path} can be read by others (mode {mode:03o}); take that from them (chmod 600 {path}), and \
         make a new one if they may have read it",
        path = path.display()
    )]
    Readable {
        /// Which.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
}

impl Secret {
    /// A secret of these bytes.
    ///
    /// # Errors
    /// [`SecretError::Length`], [`SecretError::ZeroByte`].
    pub fn new(bytes: Vec<u8>) -> Result<Self, SecretError> {
        let bytes = Zeroizing::new(bytes);
        if !(SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&bytes.len()) {
            return Err(SecretError::Length { found: bytes.len() });
        }
        if bytes.contains(&0) {
            return Err(SecretError::ZeroByte);
        }
        Ok(Self(Arc::new(bytes)))
    }

    /// The secret in a file that only its owner may read. Ends of lines at its end are no part of it, as in a shell's `$(cat FILE)`.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn read(path: &Path) -> Result<Self, SecretError> {
        let unreadable = |source| SecretError::File { path: path.into(), source };
        // Opening a pipe would wait for a writer.
        let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(SecretError::NotAFile { path: path.into() });
        }
        let mode = metadata.mode() & 0o777;
        if mode & ANYBODY_ELSE != 0 {
            return Err(SecretError::Readable { path: path.into(), mode });
        }
        // Two more for an end of line, one to see that it is too long.
        let at_most = SECRET_BYTES_MAX + 3;
        let mut bytes = Zeroizing::new(Vec::with_capacity(at_most));
        file.take(at_most as u64).read_to_end(&mut bytes).map_err(unreadable)?;
        let end = bytes.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |last| last + 1);
        Self::new(bytes[..end].to_vec())
    }

    /// A new one, as text, from the system's random source.
    ///
    /// # Errors
    /// The system's, when there is no random source.
    pub fn random() -> io::Result<Self> {
        let bytes = Zeroizing::new(draw::<RANDOM_BYTES>()?);
        let digit = |value: u8| char::from_digit(u32::from(value), 16).map_or(b'0', |digit| digit as u8);
        let text = bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect();
        Ok(Self(Arc::new(Zeroizing::new(text))))
    }

    /// Its bytes, to be handed to a child process or to make a proof with. Never to be printed.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq for Secret {
    /// Whether two sources on this side gave the same. Not for what a peer has sent: that is compared in constant time.
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Bytes from the system's random source.
pub(super) fn draw<const COUNT: usize>() -> io::Result<[u8; COUNT]> {
    let mut bytes = [0; COUNT];
    let mut filled = 0;
    while filled < COUNT {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A file of this test alone, gone with it.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str, mode: u32, content: &[u8]) -> Self {
            let scratch = Self(std::env::temp_dir().join(format!("rangefold-{}-{name}", std::process::id())));
            std::fs::write(&scratch.0, content).expect("a folder for temporary files");
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&scratch.0, permissions).expect("our own file");
            scratch
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn a_file_gives_its_text_without_the_ends_of_lines() {
        for end in ["", "\n", "\r\n", "\n\n"] {
            let file = Scratch::new("secret", 0o600, format!("0123456789abcdef{end}").as_bytes());
            assert_eq!(Secret::read(&file.0).expect("good").expose(), b"0123456789abcdef");
        }
        let longest = Scratch::new("secret-longest", 0o400, &[&[b'x'; 4096][..], b"\r\n"].concat());
        assert_eq!(Secret::read(&longest.0).expect("good").expose().len(), 4096);
    }

    #[test]
    fn a_file_that_others_may_read_is_refused_with_the_remedy() {
        for mode in [0o640, 0o604, 0o644, 0o620] {
            let file = Scratch::new("secret-open", mode, b"0123456789abcdef");
            let error = Secret::read(&file.0).expect_err("open to others");
            assert!(matches!(error, SecretError::Readable { mode: found, .. } if found == mode), "{error}");
            assert!(error.to_string().contains(&format!("chmod 600 {}", file.0.display())), "{error}");
        }
    }

    #[test]
    fn what_is_no_secret_says_so() {
        assert!(matches!(Secret::new(vec![b'x'; 15]), Err(SecretError::Length { found: 15 })));
        assert!(matches!(Secret::new(vec![b'x'; 4097]), Err(SecretError::Length { found: 4097 })));
        assert!(matches!(Secret::new(vec![0; 16]), Err(SecretError::ZeroByte)));
        let long = Scratch::new("secret-long", 0o600, &[b'x'; 1 << 20]);
        assert!(matches!(Secret::read(&long.0), Err(SecretError::Length { found: 4099 })), "read in part");
        assert!(matches!(Secret::read(Path::new("/nowhere/at/all")), Err(SecretError::File { .. })));
        assert!(matches!(Secret::read(Path::new("/dev/null")), Err(SecretError::NotAFile { .. })));
        let pipe = Scratch(std::env::temp_dir().join(format!("rangefold-{}-pipe", std::process::id())));
        let made = rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe.0,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        );
        made.expect("a pipe");
        assert!(matches!(Secret::read(&pipe.0), Err(SecretError::NotAFile { .. })), "nobody writes there");
    }

    #[test]
    fn a_random_one_is_text_that_nobody_has_seen_and_nobody_prints() {
        let (one, other) = (Secret::random().expect("random"), Secret::random().expect("random"));
        assert_ne!(one, other);
        assert!(one.expose().len() == 64 && one.expose().iter().all(u8::is_ascii_hexdigit));
        assert_eq!(format!("{one:?}"), "Secret");
        assert_eq!(Secret::new(one.expose().to_vec()).expect("good"), one);
    }
}
