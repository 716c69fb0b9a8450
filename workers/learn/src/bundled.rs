//! Knows: the Adult data inside the binary (`data/README.md` says whose they are and how they were made).
//! Knows not: what is trained on them.
//! Called by: the first training run of a new user, tests.
//! Paper: none.

use std::fs::File;
use std::io;

use flate2::read::GzDecoder;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use crate::mapping::{Mapping, MappingError};

const ADULT_TRAIN: &[u8] = include_bytes!("../data/adult.train.svm.gz");
const ADULT_TEST: &[u8] = include_bytes!("../data/adult.test.svm.gz");

/// The smallest objective on the training rows for lambda 10, certified to 1.5e-6 by an independent solver (celer).
pub const ADULT_OPTIMUM: f64 = 13_545.570_474_2;

/// The training rows of Adult: 39 099 rows, 122 features, 2.9 MB of libsvm text.
///
/// Cost: about 20 ms to decompress, into an anonymous memory file that goes away with the mapping.
///
/// # Errors
/// The system has no memory files, or no memory.
pub fn adult_train() -> Result<Mapping, MappingError> {
    decompress(ADULT_TRAIN, "bundled:adult.train.svm")
}

/// The test rows of Adult: 9 743 rows, 122 features, 0.7 MB of libsvm text.
///
/// # Errors
/// The system has no memory files, or no memory.
pub fn adult_test() -> Result<Mapping, MappingError> {
    decompress(ADULT_TEST, "bundled:adult.test.svm")
}

/// The same reader serves bundled and real data: a mapping is a mapping.
fn decompress(compressed: &[u8], name: &str) -> Result<Mapping, MappingError> {
    let file = memory_file(compressed, name).map_err(|source| MappingError {
        action: "decompress",
        name: name.to_owned(),
        source,
    })?;
    Mapping::of_file(&file, name.to_owned())
}

fn memory_file(compressed: &[u8], name: &str) -> io::Result<File> {
    let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    io::copy(&mut GzDecoder::new(compressed), &mut file)?;
    // From here on nobody can change a byte: the mapping of this file needs no trust at all.
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    fn hash(mapping: &Mapping) -> String {
        Sha256::digest(mapping.bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_text_is_the_one_that_the_readme_names() {
        let readme = include_str!("../data/README.md");
        assert!(readme.contains(&hash(&adult_train().unwrap())));
        assert!(readme.contains(&hash(&adult_test().unwrap())));
    }
}
