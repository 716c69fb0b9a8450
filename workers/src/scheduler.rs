//! A scheduler process: the coordinator behind a listener, one thread per connection of the control plane.
//! Knows streams and deadlines; decides nothing that the coordinator does not. Run by `rangefold scheduler`.
//! Source: OSDI'14 §3 (scheduler node, server manager), §4.6.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use rangefold_proto::scheduler::JobSpec;
use rangefold_proto::{ServerId, TableError, TableId, TableSpec, WorkerId};
use rangefold_transport::bootstrap::{Accepted, Answer, Handler, Hello, Listener, Purpose};

use crate::control_stream::{FromScheduler, ToScheduler, read, write};
use crate::coordinator::{Coordinator, Listener as Hearer, News};
use crate::remote::JOB;

/// Messages waiting for one server or worker, at most; one that reads none for so long is cut off.
const MESSAGES_MAX: usize = 4096;
/// How long one that has connected may take to say what it is.
const INTRODUCTION: Duration = Duration::from_secs(5);
/// How long a table waits for servers that have not joined, at most.
const SERVERS: Duration = Duration::from_secs(600);
/// Between two looks.
const AGAIN: Duration = Duration::from_millis(5);
/// How long a look at a connection waits for something to be there.
const LOOK: Duration = Duration::from_millis(1);
/// How often the silent are looked for.
const TICK: Duration = Duration::from_millis(100);

/// What happened, for whoever runs the scheduler to print.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Happening {
    /// A server has joined.
    ServerJoined(ServerId, String),
    /// A server's connection ended.
    ServerLost(ServerId),
    /// A worker has joined.
    WorkerJoined(WorkerId, String),
    /// A worker is done, or its connection ended; its lanes go to others.
    WorkerLeft(WorkerId, String),
    /// One was refused.
    Refused(String, String),
}

/// Serves until the listener is stopped. A worker or server that says nothing for `silence` is taken for dead.
pub fn serve(
    listener: &Listener,
    coordinator: &Arc<Coordinator>,
    silence: Duration,
    happened: impl Fn(Happening) + Sync + Send + 'static,
) {
    let stopped = Arc::new(AtomicBool::new(false));
    let ticking = (Arc::clone(coordinator), Arc::clone(&stopped));
    let tick = move || {
        // Relaxed: a tick too many does no harm.
        while !ticking.1.load(Ordering::Relaxed) {
            ticking.0.tick();
            thread::sleep(TICK);
        }
    };
    let ticker = thread::Builder::new().name("rangefold-tick".into()).spawn(tick);
    let desk = Desk { coordinator: Arc::clone(coordinator), silence, happened: Arc::new(happened) };
    listener.serve(&desk);
    stopped.store(true, Ordering::Relaxed);
    if let Ok(ticker) = ticker {
        // It has no way to fail.
        let _ = ticker.join();
    }
}

struct Desk<F> {
    coordinator: Arc<Coordinator>,
    silence: Duration,
    happened: Arc<F>,
}

impl<F: Fn(Happening) + Sync + Send + 'static> Handler for Desk<F> {
    fn decide(&self, hello: &Hello, _: Option<SocketAddr>) -> Answer {
        if hello.purpose != Purpose::Control {
            let text =
                "this is the scheduler's address; servers listen elsewhere, and the map says where".into();
            return Answer::Refuse { text };
        }
        if hello.job != JOB.0 {
            return Answer::Refuse { text: format!("this scheduler knows job {}, not {}", JOB.0, hello.job) };
        }
        Answer::Accept { greeting: Vec::new() }
    }

    fn accepted(&self, accepted: Accepted) {
        let Accepted::Control { stream, .. } = accepted else { return };
        let (coordinator, happened) = (Arc::clone(&self.coordinator), Arc::clone(&self.happened));
        let silence = self.silence;
        let attend = move || {
            let from = stream.peer_addr().map_or_else(|_| "?".into(), |address| address.to_string());
            if let Err(error) = attend(&stream, &coordinator, silence, &*happened, &from) {
                happened(Happening::Refused(from, error.to_string()));
            }
            // Ends the thread that writes, if there is one.
            let _ = stream.shutdown(Shutdown::Both);
        };
        // Without a thread the connection is dropped, and the other side tries again.
        let _ = thread::Builder::new().name("rangefold-control".into()).spawn(attend);
    }
}

/// The queue to one server or worker; its thread writes.
struct Queue(Sender<FromScheduler>, TcpStream);

impl Hearer for Queue {
    fn tell(&self, news: News) {
        if let Err(TrySendError::Full(_)) = self.0.try_send(FromScheduler::News(news)) {
            // It does not read: the same as dead.
            let _ = self.1.shutdown(Shutdown::Both);
        }
    }
}

/// One connection, to its end.
fn attend(
    stream: &TcpStream,
    coordinator: &Coordinator,
    silence: Duration,
    happened: &impl Fn(Happening),
    from: &str,
) -> io::Result<()> {
    stream.set_read_timeout(Some(INTRODUCTION))?;
    stream.set_write_timeout(Some(silence))?;
    let first: ToScheduler = read(stream)?;
    stream.set_read_timeout(Some(silence))?;
    let (sender, messages) = crossbeam_channel::bounded(MESSAGES_MAX);
    let queue =
        || -> io::Result<Box<dyn Hearer>> { Ok(Box::new(Queue(sender.clone(), stream.try_clone()?))) };
    // Before anybody joins, so that nobody who joined is forgotten when this fails.
    speak(stream, messages)?;
    match first {
        ToScheduler::JoinServer { address, shards, host, number } => {
            let hearer = queue()?;
            let said = format!("{address}, {shards} shards");
            let greeted = |server| {
                // The first message, before any news: the queue is empty, so there is room.
                let _ = sender.try_send(FromScheduler::Server(server));
                hearer
            };
            match coordinator.join_server(address, shards, host, number, greeted) {
                Ok(server) => {
                    happened(Happening::ServerJoined(server, said));
                    let _ = listen(stream, coordinator, None, &sender);
                    coordinator.lose_server(server);
                    happened(Happening::ServerLost(server));
                    Ok(())
                }
                Err(error) => refuse(stream, &error.to_string()),
            }
        }
        ToScheduler::JoinWorker { workers, parts, rank } => {
            let silence_ns = u64::try_from(silence.as_nanos()).unwrap_or(u64::MAX);
            let hearer = queue()?;
            let greeted = |worker| {
                let _ = sender.try_send(FromScheduler::Worker(worker));
                hearer
            };
            let who = rank.map_or_else(String::new, |rank| format!(" (rank {rank})"));
            match coordinator.join_worker(JobSpec { workers, parts, silence_ns }, rank, greeted) {
                Ok(worker) => {
                    happened(Happening::WorkerJoined(worker, format!("{from}{who}")));
                    let why = match listen(stream, coordinator, Some(worker), &sender) {
                        Ok(()) => "by its own word",
                        Err(error)
                            if matches!(
                                error.kind(),
                                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                            ) =>
                        {
                            "no sign of life: its process is stopped, or the network between is cut"
                        }
                        Err(_) => "its connection broke: its process has ended",
                    };
                    coordinator.leave(worker);
                    happened(Happening::WorkerLeft(worker, format!("{why}{who}")));
                    Ok(())
                }
                Err(error) => refuse(stream, &error.to_string()),
            }
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the first message is no introduction")),
    }
}

/// Makes a table, waiting a while for servers that have not joined yet: processes start in any order.
fn create_table(
    stream: &TcpStream,
    coordinator: &Coordinator,
    worker: WorkerId,
    spec: &TableSpec,
    patience: Duration,
) -> Result<TableId, TableError> {
    let until = Instant::now() + patience.min(SERVERS);
    loop {
        match coordinator.create_table(spec) {
            Err(TableError::ServersMissing { .. }) if Instant::now() < until && !has_ended(stream) => {
                // Its signs of life wait behind its question.
                let _ = coordinator.report(worker, &[]);
                thread::sleep(AGAIN);
            }
            outcome => return outcome,
        }
    }
}

/// Whether the other side has closed the connection, as a process that ends does.
fn has_ended(stream: &TcpStream) -> bool {
    // Nobody else reads here meanwhile.
    let look = || {
        let patience = stream.read_timeout()?;
        stream.set_read_timeout(Some(LOOK))?;
        let peeked = stream.peek(&mut [0]);
        stream.set_read_timeout(patience)?;
        peeked
    };
    match look() {
        Ok(read) => read == 0,
        Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
    }
}

fn refuse(stream: &TcpStream, text: &str) -> io::Result<()> {
    write(stream, &FromScheduler::Refused(text.into()))?;
    Err(io::Error::new(io::ErrorKind::ConnectionRefused, text))
}

/// Writes what is queued, on a thread of its own, until the queue or the connection ends.
fn speak(stream: &TcpStream, messages: Receiver<FromScheduler>) -> io::Result<()> {
    let stream = stream.try_clone()?;
    let speak = move || {
        for message in messages {
            if write(&stream, &message).is_err() {
                let _ = stream.shutdown(Shutdown::Both);
                return;
            }
        }
    };
    thread::Builder::new().name("rangefold-speak".into()).spawn(speak).map(drop)
}

/// Reads until the other side leaves (`Ok`) or the connection ends (`Err`).
fn listen(
    stream: &TcpStream,
    coordinator: &Coordinator,
    worker: Option<WorkerId>,
    answers: &Sender<FromScheduler>,
) -> io::Result<()> {
    loop {
        let message: ToScheduler = read(stream)?;
        let answer = match (message, worker) {
            (ToScheduler::Alive, None) => None,
            (ToScheduler::Alive, Some(worker)) => {
                // One that was given up is told so by news.
                let _ = coordinator.report(worker, &[]);
                None
            }
            (ToScheduler::Report(acknowledged), Some(worker)) => {
                let _ = coordinator.report(worker, &acknowledged);
                None
            }
            (ToScheduler::Barrier, Some(worker)) => {
                let _ = coordinator.barrier(worker);
                None
            }
            (ToScheduler::CreateTable { request, spec, patience_ms }, Some(worker)) => {
                let patience = Duration::from_millis(u64::from(patience_ms));
                let outcome = create_table(stream, coordinator, worker, &spec, patience);
                Some(FromScheduler::Table { request, outcome })
            }
            (ToScheduler::Post { request, name, content }, Some(worker)) => {
                let outcome = coordinator.post(worker, &name, content).map_err(|error| error.to_string());
                Some(FromScheduler::Posted { request, outcome })
            }
            (ToScheduler::Notice { request, name }, Some(_)) => {
                Some(FromScheduler::Notice { request, content: coordinator.notice(&name) })
            }
            (ToScheduler::Leave, _) => return Ok(()),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "a message that only others send")),
        };
        if let Some(answer) = answer {
            let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "it does not read its answers");
            answers.try_send(answer).map_err(gone)?;
        }
    }
}
