//! `rangefold perf`: what it prints can be recomputed, what it says by its status is true. Nothing here asserts a time.

use std::collections::BTreeMap;
use std::process::Output;

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Started, error_of, finish, rangefold, result_of, run, start_scheduler, uring_is_here};

const RATES: [(&str, &str); 3] = [
    ("megabytes_per_second", "size_bytes"),
    ("megakeys_per_second", "keys"),
    ("megamessages_per_second", ""),
];

fn status(output: &Output, expected: i32) -> String {
    let error = error_of(output);
    assert_eq!(output.status.code(), Some(expected), "{error}\n{}", String::from_utf8_lossy(&output.stdout));
    error
}

/// Recomputes each rate from the iterations and seconds beside it, as whoever reads the row can.
fn recompute(row: &BTreeMap<String, f64>, tolerance: f64) {
    for (rate, of) in RATES {
        let Some(&printed) = row.get(rate) else { continue };
        let count = if of.is_empty() { 1.0 } else { row[of] };
        let again = row["iterations"] * count / row["seconds"] / 1e6;
        assert!(
            (printed - again).abs() <= tolerance + again * 1e-9,
            "{rate}: {printed}, not {again}: {row:?}"
        );
    }
    let order = ["min_us", "p50_us", "p99_us", "p99_9_us"].map(|name| row.get(name));
    assert!(order.iter().flatten().is_sorted(), "{row:?}");
    assert_eq!(row.contains_key("p99_9_us"), row["iterations"] >= 1000.0, "{row:?}");
    assert_eq!(row["wrong"], 0.0, "{row:?}");
}

/// The rows of a JSON document, what is not known left out.
fn json_rows(document: &Value) -> Vec<BTreeMap<String, f64>> {
    let numbers = |row: &Value| {
        let fields = row.as_object().unwrap().iter();
        let mut numbers: BTreeMap<String, f64> =
            fields.filter_map(|(name, value)| Some((name.clone(), value.as_f64()?))).collect();
        for (name, value) in row["latency_us"].as_object().unwrap() {
            numbers.extend(value.as_f64().map(|value| (format!("{name}_us"), value)));
        }
        numbers
    };
    document["rows"].as_array().unwrap().iter().map(numbers).collect()
}

/// The rows of a table, by the names that CSV gives their columns.
fn table_rows(text: &str) -> Vec<BTreeMap<String, f64>> {
    let names = [
        "size_bytes",
        "keys",
        "iterations",
        "seconds",
        "min_us",
        "p50_us",
        "p99_us",
        "p99_9_us",
        "avg_us",
        "megabytes_per_second",
        "megakeys_per_second",
        "megamessages_per_second",
        "wrong",
    ];
    let data = text.lines().filter(|line| !line.starts_with('#'));
    data.map(|line| {
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(cells.len(), names.len(), "{line}");
        let known = names.iter().zip(cells).filter(|(_, cell)| *cell != "-");
        known.map(|(name, cell)| (String::from(*name), cell.parse().unwrap())).collect()
    })
    .collect()
}

fn csv_rows(text: &str) -> Vec<BTreeMap<String, f64>> {
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().unwrap().split(',').collect();
    let row = |line: &str| {
        let cells = names.iter().zip(line.split(','));
        cells.filter_map(|(name, cell)| Some((String::from(*name), cell.parse().ok()?))).collect()
    };
    lines.map(row).collect()
}

#[test]
fn every_operation_over_every_transport_counts_checks_and_can_be_recomputed() {
    let mut transports = vec!["memory", "shm", "socket", "auto"];
    transports.extend(uring_is_here().then_some("uring"));
    for transport in transports {
        for operation in ["send", "push", "pull", "push-pull"] {
            let output = run(&format!(
                "perf {operation} --transport {transport} --size 64:1K --iterations 300 --threads 2 --warmup 5 --format json"
            ));
            status(&output, 0);
            let document = result_of(&output);
            let (rows, chosen) = (json_rows(&document), &document["setting"]["transport"]);
            assert_eq!(rows.len(), 5, "{document}");
            for (row, bytes) in rows.iter().zip([64.0, 128.0, 256.0, 512.0, 1024.0]) {
                assert_eq!((row["size_bytes"], row["iterations"]), (bytes, 600.0), "{document}");
                recompute(row, 1e-9);
            }
            assert!(transport == "auto" || chosen["name"] == transport, "{document}");
            let reasons = chosen["refused"].as_array().unwrap();
            if transport == "auto" {
                assert_eq!(chosen["name"], "shm", "both sides are in one process: {document}");
            }
            let connection = document["setting"]["connection"].as_str().unwrap();
            let is_shared = connection.contains("shared memory");
            assert_eq!(is_shared, ["auto", "shm"].contains(&transport), "{document}");
            let of_server = &document["setting"]["server"]["transport"]["name"];
            assert!(transport == "memory" || *of_server == chosen["name"], "{document}");
            let of_uring = reasons.iter().find(|refused| refused["transport"] == "uring");
            let of_uring = of_uring.map(|refused| refused["reason"].as_str().unwrap());
            match transport {
                "socket" => assert_eq!(of_uring, Some("socket was asked for"), "{document}"),
                "shm" => assert_eq!(of_uring, Some("shm was asked for"), "{document}"),
                "uring" => assert_eq!(of_uring, None, "{document}"),
                _ => assert!(!reasons.is_empty(), "the others have reasons: {document}"),
            }
            assert_eq!((&document["schema"], &document["outcome"]), (&1.into(), &"complete".into()));
            assert_eq!(document["operation"], operation);
            assert!(
                document["setting"]["host"]["kernel"].as_str().unwrap().starts_with("Linux"),
                "{document}"
            );
            assert!(error_of(&output).is_empty(), "nothing to say: {}", error_of(&output));
        }
    }
}

#[test]
fn tables_and_csv_hold_what_a_reader_can_compute_with() {
    let table = run("perf push --size 8:4K --iterations 1000 --repeats 3");
    status(&table, 0);
    let text = String::from_utf8_lossy(&table.stdout);
    let rows = table_rows(&text);
    assert_eq!(rows.len(), 10, "{text}");
    rows.iter().for_each(|row| recompute(row, 0.000_500_1));
    for expected in ["# host ", "# transport ", "# check ", "# command ", "#  size(B) ", "# 3 repeats: "] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    // Expect: a size alone is measured and printed as one of a sweep is.
    let one = run("perf push --size 4K --iterations 1000 --repeats 3");
    let columns = |text: &str| text.lines().find(|line| line.contains("size(B)")).map(str::to_owned);
    let alone = String::from_utf8_lossy(&one.stdout);
    assert_eq!(columns(&alone), columns(&text));
    assert_eq!(table_rows(&alone)[0]["iterations"], rows[9]["iterations"]);

    let csv = run("perf pull --keys 1:4 --iterations 500 --repeats 2 --check every --format csv");
    status(&csv, 0);
    let rows = csv_rows(&String::from_utf8_lossy(&csv.stdout));
    let keys: Vec<f64> = rows.iter().map(|row| row["keys"]).collect();
    assert_eq!(keys, [1.0, 1.0, 2.0, 2.0, 4.0, 4.0], "a line for each repeat");
    rows.iter().for_each(|row| recompute(row, 0.000_500_1));
}

/// A server of its own process, and its address.
fn server(options: &str) -> (Started, String) {
    let mut server = Started::new(&format!("perf server --bind 127.0.0.1:0 {options}"));
    let address = server.first_line().strip_prefix("listening on ").unwrap().to_owned();
    (server, address)
}

#[test]
fn one_server_serves_one_client_after_the_other_and_two_at_once() {
    let (server, address) = server("--transport socket");
    for operation in ["send --threads 3", "push --threads 2", "pull --rate 2000 --depth 2"] {
        let line = format!("perf {operation} {address} --size 64:256 --iterations 200 --format json");
        let clients = [(); 2].map(|()| rangefold(&line).spawn().unwrap());
        for client in clients {
            let output = finish(client);
            status(&output, 0);
            let document = result_of(&output);
            json_rows(&document).iter().for_each(|row| recompute(row, 1e-9));
            let server = &document["setting"]["server"];
            assert_eq!(
                (&server["in_this_process"], &server["transport"]["name"]),
                (&false.into(), &"socket".into())
            );
        }
    }
    let other = run(&format!("perf send {address} --transport uring --size 64 --iterations 1"));
    // Without io_uring the client says so itself.
    let error = status(&other, 3);
    assert!(error.contains("give both the same") || error.contains("uring cannot be used"), "{error}");
    server.signal(Signal::INT);
    let output = server.finish();
    let error = status(&output, 0);
    assert!(
        error.contains("a store over socket") && error.contains("the raw transport over socket"),
        "{error}"
    );
}

#[test]
fn what_cannot_be_had_and_what_is_not_kept_is_in_the_status() {
    for (arguments, expected, words) in [
        ("read", 3, "no one-sided read"),
        ("write 127.0.0.1:9", 3, "no one-sided write"),
        ("read --transport memory", 3, "transport memory has no one-sided read"),
        ("push --transport verbs", 3, "it is not part of this version"),
        ("push --transport carrier-pigeon", 2, "there are auto, shm, uring, socket and memory"),
        ("send --size 64M --iterations 1", 2, "at most 16777216 bytes"),
        ("send 127.0.0.1:9", 4, "nothing listens on 127.0.0.1:9"),
        ("push 127.0.0.1:9 --timeout 1", 4, "nothing listens on 127.0.0.1:9"),
        ("push --size 64 --iterations 200 --min-bw 1e12", 1, "is below --min-bw"),
        ("send --size 64 --iterations 200 --max-p99 0.001", 1, "is above --max-p99"),
        ("pull --size 64 --iterations 99 --max-p99 1e9", 1, "too few for a p99"),
        ("push --size 64 --iterations 200 --min-bw 1e-9 --max-p99 1e12", 0, ""),
        ("server --bind 0.0.0.0:0", 2, "bind a loopback address"),
    ] {
        let output = run(&format!("perf {arguments}"));
        let error = status(&output, expected);
        assert!(error.contains(words), "{arguments}: {error}");
    }
    // Expect: what listens there is told apart, by both.
    let (_scheduler, cluster) = start_scheduler();
    let (_server, measurements) = server("");
    let output = run(&format!("perf push {cluster}"));
    assert!(status(&output, 1).contains("this scheduler knows job"), "{}", error_of(&output));
    let output = run(&format!("train lr --scheduler {measurements} --deadline 2"));
    assert!(status(&output, 1).contains("serves measurements and no jobs"), "{}", error_of(&output));
}

/// A client in the middle of a measurement that would go on for ever, after its table's head.
fn endless(arguments: &str) -> Started {
    let mut client =
        Started::new(&format!("perf {arguments} --size 64 --iterations 1000000000000000 --warmup 0"));
    client.skip_until("size(B)");
    client
}

#[test]
fn an_interrupt_prints_what_there_is() {
    for operation in ["send", "push", "pull --transport memory", "push --rate 5"] {
        let client = endless(operation);
        // Long enough for a message, also on a loaded machine; what is printed is counted either way.
        std::thread::sleep(std::time::Duration::from_millis(1000));
        client.signal(Signal::INT);
        let output = client.finish();
        let error = status(&output, 130);
        assert!(error.contains("printing what there is"), "{error}");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("# incomplete: interrupted"), "{text}");
        let mut rows = table_rows(&text);
        assert_eq!(rows.len(), 1, "{text}");
        assert_eq!(rows[0].insert("wrong".into(), 0.0), None, "nobody has looked: {text}");
        recompute(&rows[0], 0.000_500_1);
    }
}

#[test]
fn a_server_that_is_killed_or_stopped_is_a_peer_lost_and_rows_are_kept() {
    let kinds =
        [("send", Signal::KILL), ("push", Signal::KILL), ("send", Signal::STOP), ("pull", Signal::STOP)];
    for (operation, signal, transport) in
        ["shm", "socket"].into_iter().flat_map(|transport| kinds.map(|(what, how)| (what, how, transport)))
    {
        let (server, address) = server(&format!("--transport {transport}"));
        let client = endless(&format!("{operation} {address} --timeout 2"));
        std::thread::sleep(std::time::Duration::from_millis(1000));
        server.signal(signal);
        let output = client.finish();
        let error = status(&output, 4);
        let expected = if signal == Signal::KILL {
            error.contains("the server has ended") || error.contains("was lost")
        } else {
            error.contains("within 2s")
        };
        assert!(expected, "{operation}: {error}");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("# incomplete: ") && table_rows(&text).len() == 1, "{text}");
    }
}

#[test]
fn results_that_nobody_takes_are_an_error_and_logs_are_no_results() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output =
        rangefold("perf push --size 64 --iterations 10 --format json").stdout(full).output().unwrap();
    assert!(status(&output, 1).contains("cannot write the results"), "{}", error_of(&output));
    let help = run("perf push --help");
    let text = String::from_utf8_lossy(&help.stdout);
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    assert!(text.contains("Examples:") && text.contains("Exit status:"), "{text}");
}
