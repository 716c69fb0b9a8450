//! Messages of the control plane between processes, and how they travel: length, then postcard, on a blocking stream.
//! Knows the messages and their bound; decides nothing. Spoken by a scheduler process with servers and workers.
//! Source: protocol.md §12. They are few, so they are serialised with serde; the data's are not.

use std::io::{self, Read, Write};

use rangefold_proto::{Lane, Round, ServerId, TableError, TableId, TableSpec, WorkerId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::coordinator::News;

/// Bytes of one message, at most: a map of 10,000 segments is half of it.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// From a server or a worker to the scheduler.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum ToScheduler {
    /// The first message of a server: where workers reach it.
    JoinServer {
        /// Its listener's address.
        address: String,
        /// Its shard threads.
        shards: u16,
        /// Its host.
        host: u64,
        /// The name it would like, so that messages speak of the server as whoever started it does.
        number: Option<u32>,
    },
    /// The first message of a worker: what job it is part of.
    JoinWorker {
        /// Workers of the job.
        workers: u32,
        /// Parts of its data.
        parts: u32,
        /// Which of them this is, as whoever started it counts. No two that live may be the same.
        rank: Option<u32>,
    },
    /// Make a table, or find it.
    CreateTable {
        /// Comes back in the answer.
        request: u32,
        /// What it is to be.
        spec: TableSpec,
        /// How long it may wait for servers that have not joined, in milliseconds.
        patience_ms: u32,
    },
    /// How far the lanes are. A sign of life.
    Report(Vec<(Lane, Round)>),
    /// A sign of life.
    Alive,
    /// The next barrier is reached.
    Barrier,
    /// Post a notice.
    Post {
        /// Comes back in the answer.
        request: u32,
        /// Its name.
        name: String,
        /// Its content.
        content: Vec<u8>,
    },
    /// Read a notice.
    Notice {
        /// Comes back in the answer.
        request: u32,
        /// Its name.
        name: String,
    },
    /// Done.
    Leave,
}

/// From the scheduler to a server or a worker.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum FromScheduler {
    /// The answer to a server's first message.
    Server(ServerId),
    /// The answer to a worker's first message.
    Worker(WorkerId),
    /// The answer to a first message that is refused. The connection ends.
    Refused(String),
    /// The answer to `CreateTable`.
    Table {
        /// As asked.
        request: u32,
        /// The table, or why not.
        outcome: Result<TableId, TableError>,
    },
    /// The answer to `Post`.
    Posted {
        /// As asked.
        request: u32,
        /// Why not, in words.
        outcome: Result<(), String>,
    },
    /// The answer to `Notice`.
    Notice {
        /// As asked.
        request: u32,
        /// What was posted.
        content: Option<Vec<u8>>,
    },
    /// What everybody is told.
    News(News),
}

/// Writes a message. Blocks as long as the stream's write timeout allows.
///
/// # Errors
/// Those of the stream; `InvalidData` for a message over [`MESSAGE_BYTES_MAX`].
pub fn write<M: Serialize>(mut stream: impl Write, message: &M) -> io::Result<()> {
    let invalid = |error: postcard::Error| io::Error::new(io::ErrorKind::InvalidData, error);
    let body = postcard::to_stdvec(message).map_err(invalid)?;
    if body.len() > MESSAGE_BYTES_MAX {
        let text =
            format!("a control message of {} bytes exceeds the limit of {MESSAGE_BYTES_MAX}", body.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    // One write, so that a message is one segment on an idle connection.
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes();
    stream.write_all(&[&length[..], &body].concat())
}

/// Reads a message. Blocks as long as the stream's read timeout allows.
///
/// # Errors
/// Those of the stream; `InvalidData` for a length over [`MESSAGE_BYTES_MAX`] or bytes that are no message.
pub fn read<M: DeserializeOwned>(mut stream: impl Read) -> io::Result<M> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MESSAGE_BYTES_MAX {
        let text = format!("a control message of {length} bytes exceeds the limit of {MESSAGE_BYTES_MAX}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    postcard::from_bytes(&body).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rangefold_proto::{ElementType, UpdateFunction};

    #[test]
    fn a_message_comes_back_as_it_went() {
        let spec = TableSpec::dense("w", ElementType::F64, 10, UpdateFunction::Add);
        let message = ToScheduler::CreateTable { request: 7, spec, patience_ms: 1000 };
        let mut bytes = Vec::new();
        write(&mut bytes, &message).unwrap();
        assert_eq!(read::<ToScheduler>(&bytes[..]).unwrap(), message);
        assert_eq!(read::<ToScheduler>(&bytes[..9]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_message_over_the_limit_is_refused_on_both_sides() {
        let message =
            ToScheduler::Post { request: 0, name: String::new(), content: vec![0; MESSAGE_BYTES_MAX] };
        assert_eq!(write(&mut Vec::new(), &message).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let long = u32::MAX.to_le_bytes();
        assert_eq!(read::<ToScheduler>(&long[..]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    proptest! {
        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let length = u32::try_from(bytes.len()).unwrap().to_le_bytes();
            let framed = [&length[..], &bytes].concat();
            let _ = read::<ToScheduler>(&framed[..]);
            let _ = read::<FromScheduler>(&framed[..]);
            let _ = read::<FromScheduler>(&bytes[..]);
        }
    }
}
