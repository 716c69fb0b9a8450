//! The measuring side: finds or starts a server, makes the threads' loads, and says what they run over.
//! Knows how the four kinds are put together: the raw transport or a store, in memory or through a server. Called by `mod.rs`.

use std::any::Any;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rangefold::{ElementType, Error, TableSpec, UpdateFunction, embed};
use rangefold_transport::auto::{self, Choice, Wish};
use rangefold_transport::bootstrap::Terms;
use rangefold_transport::wait::{Clock, Loop};
use rangefold_transport::{Capabilities, Endpoint as _, Route, memory};
use rangefold_workers::remote;

use super::connection::{self, stop};
use super::crew::Crew;
use super::host::Host;
use super::options::{Operation, Plan, RawOperation, StoreOperation, Transport};
use super::raw::{self, sender};
use super::report::Setting;
use super::server::{self, Service};
use super::session::{Ask, Chosen, Session, no_thread};
use super::stop::{Flags, Stop};
use super::store::{self, Store};
use crate::exit::{Unavailable, Usage};

/// Where a server in this process listens.
const HERE: &str = "127.0.0.1:0";
/// Why `auto` does not take the memory of one process.
const NOT_MEMORY: (&str, &str) = ("memory", "it connects no processes, and is measured when it is asked for");
/// A transport that is not built.
const ABSENT: (&str, &str) = ("verbs", "not part of this version");
/// The table whose one element is asked for, so that there is a connection.
const FIRST_TABLE: &str = "perf connection";
/// Messages in a memory link, at least; more where the depth asks for it.
const MEMORY_DEPTH_MIN: usize = 64;

/// Everything that a measurement runs on.
pub(super) struct Bench {
    pub(super) crew: Crew,
    pub(super) setting: Setting,
    _behind: Behind,
}

/// What must live as long. Fields end in this order: a client leaves before its cluster ends, or its session, and a session
/// before the service.
#[derive(Default)]
struct Behind {
    _client: Option<Box<dyn Any>>,
    _cluster: Option<embed::Cluster>,
    _session: Option<Session>,
    _service: Option<Service>,
}

/// Makes what the plan asks for.
pub(super) fn set_up(plan: &Plan, host: Host, flags: &Flags) -> Result<Bench, Stop> {
    match (plan.transport, plan.operation) {
        (Transport::Absent(name), _) => {
            Err(unavailable(format!("transport {name} cannot be used: it is not part of this version")))
        }
        (Transport::Memory, Operation::Raw(operation)) => raw_memory(plan, operation, host, flags),
        (Transport::Memory, Operation::Store(operation)) => store_memory(plan, operation, host, flags),
        (Transport::Between(wish), _) => between(plan, wish, host, flags),
    }
}

fn unavailable(text: String) -> Stop {
    Stop::Failed(Unavailable(text).into())
}

/// Whether a backend has the operation. The one place that knows: a backend with one-sided operations says so in its
/// capabilities, and is let through here to a load that posts them.
fn offers(operation: RawOperation, capabilities: &Capabilities) -> Result<(), Stop> {
    if operation == RawOperation::Send {
        return Ok(());
    }
    Err(unavailable(format!(
        "transport {} has no one-sided {}: it sends messages, and reaches no memory of a peer by itself; what will is not part \
         of this version. `perf send` measures messages, `perf pull` and `perf push` a store",
        capabilities.name,
        Operation::Raw(operation).name()
    )))
}

/// Refuses sizes that a side does not take.
fn fits(plan: &Plan, body_bytes_max: u64) -> Result<(), Stop> {
    let largest = plan.shapes.last().map_or(0, |shape| shape.bytes);
    if largest > body_bytes_max {
        let text = format!(
            "--size {largest}: a message's body has at most {body_bytes_max} bytes on this transport"
        );
        return Err(Stop::Failed(Usage(text).into()));
    }
    Ok(())
}

/// How the client's threads wait when `busy_threads` may spin on this host.
fn turns(plan: &Plan, clock: Clock, busy_threads: usize) -> Loop {
    Loop::new(clock, busy_threads).busy(plan.busy_poll)
}

fn sender_options(plan: &Plan, turns: Loop, flags: Flags) -> sender::Options {
    sender::Options {
        turns,
        flags,
        check: plan.check,
        seed: plan.seed,
        timeout: plan.timeout,
        bytes_max: plan.shapes.last().map_or(1, |shape| shape.bytes),
    }
}

/// Pairs of threads of this process, each with a link of two rings.
fn raw_memory(plan: &Plan, operation: RawOperation, host: Host, flags: &Flags) -> Result<Bench, Stop> {
    let capabilities = memory::Endpoint::new().capabilities();
    offers(operation, &capabilities)?;
    fits(plan, capabilities.body_bytes_max.into())?;
    let clock = Clock::new();
    let turns = turns(plan, clock, 2 * plan.threads);
    let (of_plan, of_flags) = (plan.clone(), flags.clone());
    let crew = Crew::start(plan.threads, &plan.cores, clock, move |index| {
        let plan = &of_plan;
        let (left, right) = memory::pair(index as u64 + 1, plan.depth.max(MEMORY_DEPTH_MIN));
        let core = plan.cores.get(plan.threads + index).copied();
        let receive = move || {
            let _ = core.map(rangefold::pinning::pin);
            raw::receiver::receive(memory::Endpoint::new(), right, turns, &Arc::new(AtomicBool::new(false)));
        };
        let receiver = std::thread::Builder::new().name("rangefold-perf-receive".into()).spawn(receive);
        // It ends with its link.
        receiver.map(drop).map_err(|error| Stop::Failed(no_thread(&error)))?;
        sender::Sender::new(memory::Endpoint::new(), left, sender_options(plan, turns, of_flags.clone()))
    })?;
    let setting =
        Setting::in_memory(plan, host, &turns, "two bounded rings for each thread, bodies by reference");
    Ok(Bench { crew, setting, _behind: Behind::default() })
}

/// An embedded cluster.
fn store_memory(plan: &Plan, operation: StoreOperation, host: Host, flags: &Flags) -> Result<Bench, Stop> {
    let failed = |error: embed::StartError| Stop::Failed(error.into());
    let clock = Clock::new();
    let shard_cores = plan.cores.get(plan.threads..).unwrap_or_default().to_vec();
    let options =
        embed::Options { cores: shard_cores, busy_poll: plan.busy_poll, ..embed::Options::default() };
    let cluster = embed::Cluster::start(options).map_err(failed)?;
    let client = cluster.join().map_err(failed)?;
    client.wait_for_lanes(plan.timeout).map_err(|error| Stop::Lost(error.to_string()))?;
    let made = (client.clone(), plan.clone(), flags.clone());
    let crew = Crew::start(plan.threads, &plan.cores, clock, move |index| {
        let (client, plan, flags) = &made;
        Ok(Store::new(client.clone(), store_options(plan, operation, clock, flags, index)))
    })?;
    let setting = Setting::in_memory(
        plan,
        host,
        &turns(plan, clock, 2),
        "an embedded cluster: one shard thread, one client",
    );
    let behind = Behind { _client: Some(Box::new(client)), _cluster: Some(cluster), ..Behind::default() };
    Ok(Bench { crew, setting, _behind: behind })
}

fn store_options(
    plan: &Plan,
    operation: StoreOperation,
    clock: Clock,
    flags: &Flags,
    index: usize,
) -> store::Options {
    store::Options {
        operation,
        clock,
        flags: flags.clone(),
        check: plan.check,
        seed: plan.seed,
        timeout: plan.timeout,
        index: index as u64,
        threads: plan.threads as u64,
    }
}

/// An endpoint of the client, and why this one.
fn endpoint(wish: Wish, is_raw: bool) -> Result<(auto::Endpoint, Choice), Stop> {
    // A store's client passes its endpoint from thread to thread; a raw sender's thread keeps its own.
    let framing = if is_raw { raw::framing() } else { remote::framing() };
    let options = auto::Options { wish, framing, one_thread: is_raw };
    auto::Endpoint::new(&options).map_err(|error| unavailable(error.to_string()))
}

/// Through a server, of another process or of this one.
fn between(plan: &Plan, wish: Wish, host: Host, flags: &Flags) -> Result<Bench, Stop> {
    let is_raw = matches!(plan.operation, Operation::Raw(_));
    let (endpoint, choice) = endpoint(wish, is_raw)?;
    let capabilities = endpoint.capabilities();
    if let Operation::Raw(operation) = plan.operation {
        offers(operation, &capabilities)?;
    }
    let mut behind = Behind::default();
    let address = match &plan.address {
        Some(address) => address.clone(),
        None => {
            let options = server::Options {
                transport: wish,
                cores: plan.cores.get(plan.threads..).unwrap_or_default().to_vec(),
                busy_poll: plan.busy_poll,
                shares_processors: true,
                told: |_| {},
                terms: plan.terms.clone(),
            };
            let service = Service::start(HERE, options).map_err(Stop::Failed)?;
            let address = service.address().to_string();
            behind._service = Some(service);
            address
        }
    };
    let threads = u16::try_from(plan.threads).unwrap_or(u16::MAX);
    let ask = Ask { store: !is_raw, transport: wish.to_string(), threads };
    let session = Session::open(&address, &ask, &plan.terms, plan.timeout)?;
    let flags = flags.clone().with_gone(session.gone());
    // Threads of this host that may spin; one thread drives a store's client at a time.
    let ours = if is_raw { plan.threads } else { 1 };
    let busy_threads = if plan.address.is_none() { 2 * ours } else { ours };
    let clock = Clock::new();
    let turns = turns(plan, clock, busy_threads);
    // What the connections go through; all of a session take the same way, or it is not the same host.
    let routes = Arc::new(Mutex::new(Vec::new()));
    let crew = match plan.operation {
        Operation::Raw(_) => {
            fits(plan, session.ready.body_bytes_max.min(capabilities.body_bytes_max.into()))?;
            let (name, of_plan) = (session.ready.session, plan.clone());
            // Each thread makes its own.
            drop(endpoint);
            let (address, routes) = (address.clone(), Arc::clone(&routes));
            Crew::start(plan.threads, &plan.cores, clock, move |_| {
                let (endpoint, _) = self::endpoint(wish, true)?;
                let terms = Terms { sharing: endpoint.sharing(), ..of_plan.terms.clone() };
                let link = connection::join(&address, name, &terms, of_plan.timeout)?;
                routes.lock().unwrap_or_else(PoisonError::into_inner).push(link.route());
                sender::Sender::new(endpoint, link, sender_options(&of_plan, turns, flags.clone()))
            })?
        }
        Operation::Store(operation) => {
            let client = store_client(plan, &address, session.ready.scheduler_port, endpoint, busy_threads)?;
            behind._client = Some(Box::new(client.clone()));
            routes.lock().unwrap_or_else(PoisonError::into_inner).extend(connected(&client, plan.timeout)?);
            let of_plan = plan.clone();
            Crew::start(plan.threads, &plan.cores, clock, move |index| {
                Ok(Store::new(client.clone(), store_options(&of_plan, operation, clock, &flags, index)))
            })?
        }
    };
    let route = routes.lock().unwrap_or_else(PoisonError::into_inner).first().cloned();
    let route = route.unwrap_or(Route::Tcp(None));
    let others: Vec<_> = plan.address.is_none().then_some(NOT_MEMORY).into_iter().chain([ABSENT]).collect();
    let chosen = Chosen::over(choice, &route, &others);
    let setting = Setting::between(plan, host, &turns, chosen, &route, &address, &session.ready);
    behind._session = Some(session);
    Ok(Bench { crew, setting, _behind: behind })
}

/// A worker of the session's cluster.
fn store_client(
    plan: &Plan,
    address: &str,
    port: u16,
    endpoint: auto::Endpoint,
    busy_threads: usize,
) -> Result<rangefold_workers::Client<auto::Endpoint, remote::RemoteDialer>, Stop> {
    // The scheduler is on the host that was named, at a port that it picked.
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let options = remote::Options {
        scheduler: format!("{host}:{port}"),
        busy_threads,
        busy_poll: plan.busy_poll,
        deadline: plan.timeout,
        terms: Terms { sharing: endpoint.sharing(), ..plan.terms.clone() },
        ..remote::Options::default()
    };
    let client = remote::connect(&options, endpoint).map_err(|error| match error {
        remote::ConnectError::Dial(error) => stop(error),
        error @ remote::ConnectError::Thread(_) => Stop::Failed(error.into()),
        error => Stop::Lost(error.to_string()),
    })?;
    client.wait_for_lanes(plan.timeout).map_err(|error| Stop::Lost(error.to_string()))?;
    Ok(client)
}

/// Has the client connect to the shard, which it does when it wants something of it; says what the connection goes through.
fn connected(
    client: &rangefold_workers::Client<auto::Endpoint, remote::RemoteDialer>,
    timeout: Duration,
) -> Result<Vec<Route>, Stop> {
    let mut spec = TableSpec::dense(FIRST_TABLE, ElementType::F32, 1, UpdateFunction::Add);
    spec.segments = 1;
    let lost = |error: Error| Stop::Lost(error.to_string());
    let table = client.table::<f32>(&spec).map_err(lost)?;
    table.pull(0..1).and_then(|pull| pull.wait(timeout)).map_err(lost)?;
    Ok(client.routes().into_iter().map(|(_, route)| route).collect())
}
