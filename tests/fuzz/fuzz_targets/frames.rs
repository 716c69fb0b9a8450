//! A stream of frames as a connection would receive it: cut anywhere, heads found by the transport, read by the protocol.
//! The first byte says how it is cut, and whether each head's first bytes and check are put right, without which no fuzzer gets
//! past them.
//! Nothing may panic; what the transport lets through the protocol can read, and can write again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rangefold_proto::wire;
use rangefold_transport::stream::HeadParser;
use rangefold_workers::remote::framing;

const CONNECTION: u64 = 0x0123_4567_89ab_cdef;
const BODY_BYTES_MAX: u32 = 1 << 20;
/// Where a head keeps its check.
const CHECK_AT: usize = 60;

/// Puts magic, version and check right of each head that begins where a head would.
fn put_right(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(first) = bytes[at..].first_chunk_mut() {
        *first = [b'R', b'F', wire::VERSION];
        at = match put_check_right(bytes, at) {
            Some(next) if next <= bytes.len() => next,
            _ => return,
        };
    }
}

/// Where the next head would begin.
fn put_check_right(bytes: &mut [u8], at: usize) -> Option<usize> {
    let fixed = bytes[at..].first_chunk::<{ wire::HEADER_BYTES }>()?;
    let extension_bytes = wire::extension_bytes(fixed).ok()?;
    let head = bytes[at..].get_mut(..wire::HEADER_BYTES + extension_bytes)?;
    let covered = [&head[..CHECK_AT], &head[wire::HEADER_BYTES..], &CONNECTION.to_le_bytes()].concat();
    let check = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &covered) as u32;
    head[CHECK_AT..wire::HEADER_BYTES].copy_from_slice(&check.to_le_bytes());
    let body_bytes = wire::body_bytes(head, CONNECTION).ok()?;
    Some((at + head.len()).saturating_add(body_bytes))
}

fuzz_target!(|data: &[u8]| {
    let Some((&how, data)) = data.split_first() else { return };
    let mut bytes = data.to_vec();
    if how & 1 == 1 {
        put_right(&mut bytes);
    }
    let mut parser = HeadParser::new(framing(), CONNECTION, BODY_BYTES_MAX);
    let mut body = 0;
    for mut piece in bytes.chunks(1 + usize::from(how >> 1)) {
        while !piece.is_empty() {
            let skipped = body.min(piece.len());
            (body, piece) = (body - skipped, &piece[skipped..]);
            let Ok(parsed) = parser.parse(piece) else { return };
            assert!(parsed.consumed <= piece.len() && (parsed.consumed > 0 || piece.is_empty()));
            piece = &piece[parsed.consumed..];
            let Some((head, body_bytes)) = parsed.head else { continue };
            assert!(body_bytes <= BODY_BYTES_MAX as usize);
            body = body_bytes;
            let (header, extension) = wire::decode(head.as_bytes(), CONNECTION).expect("let through");
            assert_eq!(body_bytes, header.key_bytes as usize + header.value_bytes as usize);
            let mut again = [0; wire::HEAD_BYTES_MAX];
            let len = wire::encode(&header, &extension, CONNECTION, &mut again);
            let read_again = wire::decode(&again[..len], CONNECTION).expect("written by ourselves");
            // By their bytes, as numbers that are none differ from themselves.
            let mut twice = [0; wire::HEAD_BYTES_MAX];
            let len_twice = wire::encode(&read_again.0, &read_again.1, CONNECTION, &mut twice);
            assert_eq!((read_again.0, &twice[..len_twice]), (header, &again[..len]));
        }
    }
});
