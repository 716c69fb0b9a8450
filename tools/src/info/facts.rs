//! What the system says of itself below `/proc` and `/sys`: memory in huge pages, nodes of memory, cards, io_uring.
//! Knows the files and their formats; what is not there is left out. Part of `rangefold info`, called by `mod.rs`.

use std::path::{Path, PathBuf};

use io_uring::{IoUring, Probe, opcode};
use serde_json::{Map, Value, json};

/// The first line of a file, or all of a short one.
pub(super) fn read(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// The entries of a folder whose names begin so, by number where one follows.
fn entries(folder: &Path, begin: &str) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .filter(|(name, _)| name.starts_with(begin))
        .collect();
    found.sort_by_key(|(name, _)| (name.len(), name.clone()));
    found
}

/// The word in brackets: which of several is set.
fn chosen(text: &str) -> Option<&str> {
    text.split_once('[')?.1.split_once(']').map(|(word, _)| word)
}

/// Huge pages: whether the kernel makes them of ordinary and of shared memory (`always`, `madvise`, `never`, and for shared
/// memory `advise`, `within_size`, `deny`, `force`), and those that are set aside, by size.
pub(super) fn huge_pages(sys: &Path) -> Value {
    let set = |name: &str| {
        let text = read(sys.join("kernel/mm/transparent_hugepage").join(name))?;
        chosen(&text).map(str::to_owned)
    };
    let mut facts = Map::new();
    facts.insert("of_memory".into(), json!(set("enabled")));
    facts.insert("of_shared_memory".into(), json!(set("shmem_enabled")));
    for (name, path) in entries(&sys.join("kernel/mm/hugepages"), "hugepages-") {
        let count = |file| read(path.join(file))?.parse::<u64>().ok();
        let size = name.trim_start_matches("hugepages-");
        facts.insert(format!("set_aside_of_{size}"), json!(count("nr_hugepages")));
    }
    facts.into()
}

/// The nodes of memory: which processors are near each, and how much it is.
pub(super) fn memory_nodes(sys: &Path) -> Value {
    let nodes = entries(&sys.join("devices/system/node"), "node").into_iter();
    let facts = nodes.filter(|(name, _)| name["node".len()..].parse::<u32>().is_ok()).map(|(name, path)| {
        let bytes = read(path.join("meminfo")).as_deref().and_then(total_bytes);
        (name, json!({ "processors": read(path.join("cpulist")), "memory_bytes": bytes }))
    });
    Value::Object(facts.collect())
}

/// `Node 0 MemTotal:       24683656 kB`, in bytes.
fn total_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.split_once("MemTotal:"))?.1;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The ports of the cards that offer remote memory access: link layer, state and rate of each.
pub(super) fn remote_memory_ports(sys: &Path) -> Value {
    let mut facts = Map::new();
    for (card, path) in entries(&sys.join("class/infiniband"), "") {
        for (port, path) in entries(&path.join("ports"), "") {
            // `4: ACTIVE`
            let state = read(path.join("state"));
            let state = state.map(|text| text.rsplit(':').next().unwrap_or_default().trim().to_owned());
            let (layer, rate) = (read(path.join("link_layer")), read(path.join("rate")));
            let words = [layer, state, rate].into_iter().flatten().collect::<Vec<_>>().join(", ");
            facts.insert(format!("{card} port {port}"), words.into());
        }
    }
    facts.into()
}

/// What this kernel's io_uring can do of what transports use or might, or why it cannot be had.
pub(super) fn io_uring() -> Value {
    let ring = match IoUring::new(2) {
        Ok(ring) => ring,
        Err(error) => return json!({ "unavailable": error.to_string() }),
    };
    let mut probe = Probe::new();
    let probed = ring.submitter().register_probe(&mut probe);
    let has = |code: u8| probed.is_ok().then(|| probe.is_supported(code));
    json!({
        "no_completion_is_dropped": ring.params().is_feature_nodrop(),
        "waits_with_a_timeout": ring.params().is_feature_ext_arg(),
        "sends_and_receives_in_bundles": ring.params().is_feature_recvsend_bundle(),
        "waits_for_the_first_of_many": ring.params().is_feature_min_timeout(),
        "sends_without_copying": has(opcode::SendMsgZc::CODE),
        "waits_on_futexes": has(opcode::FutexWait::CODE),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of files of this test alone, gone with it.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("rangefold-facts-{}-{name}", std::process::id()));
            for (path, text) in files {
                let path = root.join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            Self(root)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn huge_pages_are_what_is_set() {
        let tree = Tree::new(
            "huge",
            &[
                ("kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
                (
                    "kernel/mm/transparent_hugepage/shmem_enabled",
                    "always within_size advise [never] deny force\n",
                ),
                ("kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "0\n"),
                ("kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "512\n"),
            ],
        );
        let expected = json!({
            "of_memory": "madvise", "of_shared_memory": "never", "set_aside_of_2048kB": 512, "set_aside_of_1048576kB": 0,
        });
        assert_eq!(huge_pages(&tree.0), expected);
        // Expect: a kernel without them has nothing to say, and no error.
        let nothing = json!({ "of_memory": null, "of_shared_memory": null });
        assert_eq!(huge_pages(&tree.0.join("nowhere")), nothing);
        assert_eq!(chosen("always madvise never"), None);
        assert_eq!(chosen("[always"), None);
    }

    #[test]
    fn memory_nodes_have_processors_and_bytes() {
        let tree = Tree::new(
            "nodes",
            &[
                ("devices/system/node/node0/cpulist", "0-3,8-11\n"),
                (
                    "devices/system/node/node0/meminfo",
                    "\nNode 0 MemTotal:       24683656 kB\nNode 0 MemFree: 1 kB\n",
                ),
                ("devices/system/node/node10/cpulist", "\n"),
                ("devices/system/node/node10/meminfo", "Node 10 MemTotal: many kB\n"),
                ("devices/system/node/online", "0,10\n"),
                ("devices/system/node/node_hints", "no node\n"),
            ],
        );
        let expected = json!({
            "node0": { "processors": "0-3,8-11", "memory_bytes": 24_683_656_u64 << 10 },
            // Memory without processors, and a size that is none.
            "node10": { "processors": "", "memory_bytes": null },
        });
        assert_eq!(memory_nodes(&tree.0), expected);
        assert_eq!(memory_nodes(&tree.0.join("nowhere")), json!({}));
        assert_eq!(total_bytes("Node 0 MemTotal: 18446744073709551615 kB"), None, "more than can be counted");
    }

    #[test]
    fn ports_have_a_layer_a_state_and_a_rate() {
        let tree = Tree::new(
            "ports",
            &[
                ("class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE\n"),
                ("class/infiniband/mlx5_0/ports/1/link_layer", "InfiniBand\n"),
                ("class/infiniband/mlx5_0/ports/1/rate", "400 Gb/sec (4X NDR)\n"),
                ("class/infiniband/rxe0/ports/1/state", "1: DOWN\n"),
            ],
        );
        let expected =
            json!({ "mlx5_0 port 1": "InfiniBand, ACTIVE, 400 Gb/sec (4X NDR)", "rxe0 port 1": "DOWN" });
        assert_eq!(remote_memory_ports(&tree.0), expected);
        assert_eq!(remote_memory_ports(&tree.0.join("nowhere")), json!({}));
    }
}
