//! Puts a node on a thread: drains commands, turns, sleeps.
//! Knows threads and channels; not frames. Called by whoever starts a server.
//! Source: `kvstore/DESIGN.md` (one thread owns a shard).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, TrySendError};
use rangefold_transport::wait::Loop;
use rangefold_transport::{Endpoint, Shell, Turn, Waker};

use crate::node::{Command, Node, NodeOptions, Observe};

/// Commands waiting for a shard, at most. Commands are rare; a caller that finds it full is told so.
const COMMANDS_MAX: usize = 1024;
/// Commands of one turn, at most.
const COMMANDS_PER_TURN: usize = 16;

/// How a process reaches one of its shard threads. Dropping the last one does not stop the thread; `stop` does.
#[derive(Clone, Debug)]
pub struct ShardHandle {
    commands: Sender<Command>,
    waker: Waker,
    stop: Arc<AtomicBool>,
}

/// The shard's queue of commands is full: it is stopped, or thousands of connections arrive at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a shard thread does not take commands: it has ended, or {COMMANDS_MAX} are waiting")]
pub struct Unresponsive;

impl ShardHandle {
    /// Hands the shard a command and wakes it.
    ///
    /// # Errors
    /// [`Unresponsive`]; the command is dropped then.
    pub fn command(&self, command: Command) -> Result<(), Unresponsive> {
        match self.commands.try_send(command) {
            Ok(()) => {
                self.waker.ring();
                Ok(())
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(Unresponsive),
        }
    }

    /// Ends the shard's thread after its present turn.
    pub fn stop(&self) {
        // Release, pairs with the Acquire in `spawn`'s loop: commands sent before are seen by the last turn.
        self.stop.store(true, Ordering::Release);
        self.waker.ring();
    }
}

/// A node and its commands, turned together.
struct Shard<E: Endpoint, O: Observe> {
    node: Node<E, O>,
    commands: Receiver<Command>,
}

impl<E: Endpoint, O: Observe> Shell for Shard<E, O> {
    type Endpoint = E;

    fn turn(&mut self, now_ns: u64) -> Turn {
        let mut commanded = false;
        for command in self.commands.try_iter().take(COMMANDS_PER_TURN) {
            self.node.command(now_ns, command);
            commanded = true;
        }
        let turn = self.node.turn(now_ns);
        Turn { progressed: turn.progressed || commanded, ..turn }
    }

    fn endpoint(&mut self) -> &mut E {
        self.node.endpoint()
    }
}

/// Starts a shard thread, watched by `observer` from there, that waits as `turns` says; `pin` runs first on the new thread and may
/// bind it to a processor.
///
/// # Errors
/// When the system gives no thread.
pub fn spawn<E: Endpoint + Send + 'static>(
    endpoint: E,
    options: NodeOptions,
    observer: impl Observe + Send + 'static,
    mut turns: Loop,
    pin: impl FnOnce() + Send + 'static,
) -> std::io::Result<(ShardHandle, JoinHandle<()>)> {
    let (sender, commands) = crossbeam_channel::bounded(COMMANDS_MAX);
    let stop = Arc::new(AtomicBool::new(false));
    let handle = ShardHandle { commands: sender, waker: endpoint.waker(), stop: Arc::clone(&stop) };
    let name = format!("rangefold-{}.{}", options.shard.server.0, options.shard.shard);
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        pin();
        let mut shard = Shard { node: Node::new(endpoint, options, observer), commands };
        // Acquire, pairs with the Release in `stop`.
        turns.run(&mut shard, |_| stop.load(Ordering::Acquire), None);
    })?;
    Ok((handle, thread))
}
