//! A worker that pushes or pulls without end, for tests and measurements of what goes on around it: `flow push|pull [PAUSE_US]`.
//!
//! It has a table of its own, a thread for each shard, and so many operations under way to each. Prints how far each thread is,
//! ends when standard input closes, and checks all that was pushed or pulled.
use std::collections::{BTreeMap, VecDeque};
use std::io::Read as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rangefold::remote::{self, Table};
use rangefold::{ElementType, KeyRange, ShardId, TableSpec, UpdateFunction};

/// Keys of the table: 16 MiB of values.
const KEYS: u64 = 4 << 20;
/// Keys of an operation at most: 256 KiB of values.
const KEYS_MAX: u64 = 64 << 10;
/// Operations under way to each shard: for pulls what a connection is granted, for pushes too.
const WINDOW: usize = 64;
/// Longer than anybody is stopped.
const PATIENCE: Duration = Duration::from_secs(100);

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let pushes = match arguments.next().as_deref() {
        Some("push") => true,
        Some("pull") => false,
        _ => return Err("flow push|pull [PAUSE_US]".into()),
    };
    let pause = arguments.next().map(|text| text.parse().map(Duration::from_micros)).transpose()?;
    let remote::Environment { options, transport, .. } = remote::Environment::read()?;
    let (client, transport) = remote::connect(&options, transport)?;
    let rank = options.rank.ok_or("a worker with a rank, as `rangefold launch` starts it")?;
    eprintln!("worker {rank} over {transport}");
    client.wait_for_lanes(PATIENCE)?;
    let spec = TableSpec::dense(&format!("flow-{rank}"), ElementType::F32, KEYS, UpdateFunction::Add);
    let table = client.table::<f32>(&spec)?;
    if !pushes {
        for ranges in pieces(&table).values() {
            for &range in ranges {
                table.push(range, &pattern(range))?.wait(PATIENCE)?;
            }
        }
    }
    client.barrier(PATIENCE)?;
    let is_over = AtomicBool::new(false);
    let (table, is_over) = (&table, &is_over);
    let parts = pieces(table);
    let counts = std::thread::scope(|scope| -> Outcome<Vec<(KeyRange, u64)>> {
        let flows: Vec<_> = parts
            .iter()
            .map(|(shard, ranges)| scope.spawn(move || flow(table, *shard, ranges, pushes, pause, is_over)))
            .collect();
        std::io::stdin().read_to_end(&mut Vec::new())?;
        is_over.store(true, Ordering::Relaxed);
        let mut counts = Vec::new();
        for flow in flows {
            counts.extend(flow.join().map_err(|_| "a thread panicked")??);
        }
        Ok(counts)
    })?;
    for (range, count) in counts.iter().filter(|_| pushes) {
        let values = table.pull(*range)?.wait(PATIENCE)?;
        #[expect(clippy::cast_precision_loss, reason = "a few thousand pushes")]
        let expected = *count as f32;
        if let Some(wrong) = values.iter().find(|&&value| value != expected) {
            return Err(format!("{wrong} at {range:?}, pushed {count} times").into());
        }
    }
    println!("checked {}", counts.iter().map(|(_, count)| count).sum::<u64>());
    client.leave();
    Ok(())
}

/// What each shard holds of the table, in pieces.
fn pieces(table: &Table<f32>) -> BTreeMap<ShardId, Vec<KeyRange>> {
    let mut pieces: BTreeMap<ShardId, Vec<KeyRange>> = BTreeMap::new();
    for (_, segment) in table.spec().cut(table.id(), KeyRange { start: 0, end: KEYS }) {
        let owner = table.owner(segment.start).expect("a table with its servers");
        let starts = (segment.start..segment.end).step_by(usize::try_from(KEYS_MAX).unwrap_or(usize::MAX));
        let ranges = starts.map(|start| KeyRange { start, end: segment.end.min(start + KEYS_MAX) });
        pieces.entry(owner).or_default().extend(ranges);
    }
    pieces
}

/// What a range is filled with when it is pulled.
fn pattern(range: KeyRange) -> Vec<f32> {
    #[expect(clippy::cast_precision_loss, reason = "keys are below 2^24")]
    (range.start..range.end).map(|key| (key + 1) as f32).collect()
}

/// Pushes to or pulls from one shard until it is over. Returns how often each range was.
fn flow(
    table: &Table<f32>,
    shard: ShardId,
    ranges: &[KeyRange],
    pushes: bool,
    pause: Option<Duration>,
    is_over: &AtomicBool,
) -> Outcome<Vec<(KeyRange, u64)>> {
    let expected: Vec<Vec<f32>> = ranges.iter().map(|&range| pattern(range)).collect();
    let ones: Vec<Vec<f32>> = expected.iter().map(|values| vec![1.0; values.len()]).collect();
    let mut counts: Vec<(KeyRange, u64)> = ranges.iter().map(|&range| (range, 0)).collect();
    let mut pushed: VecDeque<remote::Ticket> = VecDeque::new();
    let mut pulled: VecDeque<(usize, remote::PullTicket<f32>)> = VecDeque::new();
    let (mut done, mut said) = (0_u64, Instant::now());
    let mut next = Instant::now();
    let mut index = 0;
    let mut is_ending = false;
    loop {
        is_ending |= is_over.load(Ordering::Relaxed);
        if !is_ending {
            if let Some(pause) = pause {
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
                // Who was held up does not make up for it.
                next = (next + pause).max(Instant::now());
            }
            let range = ranges[index];
            if pushes {
                pushed.push_back(table.push(range, &ones[index])?);
                counts[index].1 += 1;
            } else {
                pulled.push_back((index, table.pull(range)?));
            }
            index = (index + 1) % ranges.len();
        }
        let under_way = pushed.len() + pulled.len();
        if under_way == 0 {
            break;
        }
        let is_front_done = pushed.front().is_some_and(remote::Ticket::is_done)
            || pulled.front().is_some_and(|(_, ticket)| ticket.is_done());
        // At a pace, what has ended is taken as it comes; without one, when there is no room for more.
        if under_way < WINDOW && !is_ending && !(pause.is_some() && is_front_done) {
            continue;
        }
        if let Some(ticket) = pushed.pop_front() {
            ticket.wait(PATIENCE)?;
        }
        if let Some((index, ticket)) = pulled.pop_front() {
            if *ticket.wait(PATIENCE)? != expected[index] {
                return Err(format!("wrong values at {:?}", ranges[index]).into());
            }
            counts[index].1 += 1;
        }
        done += 1;
        if said.elapsed() > Duration::from_millis(20) {
            println!("{shard:?} {done}");
            said = Instant::now();
        }
    }
    Ok(counts)
}
