//! `podway top`: a node on a terminal, once a second.
//!
//! A thread of its own asks the daemon, so that keys and signals are heeded whatever becomes of that; it
//! connects anew when the daemon was started anew.

mod draw;

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use podway_proto::client::{Client, ClientError};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::overview::{Look, Overview};

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(1);
/// How long keys and signals may wait.
const HEED: Duration = Duration::from_millis(100);

/// Why it cannot begin, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    /// The daemon does not answer at the start.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// There is nothing to draw on.
    #[error(
        "podway top draws on a terminal, and standard output is none; use podway status --verbose \
         --watch"
    )]
    NoTerminal,
    /// The terminal cannot be read or drawn on.
    #[error("cannot use the terminal: {0}")]
    Terminal(#[from] io::Error),
}

/// Draws until `q`, Escape, Ctrl-C or a signal. The terminal is then as it was, after a panic as well.
///
/// # Errors
/// Where the daemon cannot be reached at the start, or the terminal cannot be used.
pub fn run(
    connect: impl Fn() -> Result<Client, ClientError> + Send + 'static,
) -> Result<(), TopError> {
    if !io::stdout().is_terminal() {
        return Err(TopError::NoTerminal);
    }
    // Before the terminal changes, so that what is wrong is told as by every other command.
    let mut client = connect()?;
    let first = Look::take(&mut client)?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let (sender, looks) = channel();
    thread::spawn(move || ask(connect, client, &sender));
    let mut terminal = ratatui::try_init()?;
    let result = watch(&mut terminal, first, &looks, &stop);
    ratatui::try_restore()?;
    Ok(result?)
}

type Answer = Result<Look, ClientError>;

/// Asks once a period, until nobody listens.
fn ask(
    connect: impl Fn() -> Result<Client, ClientError>,
    client: Client,
    sender: &Sender<Box<Answer>>,
) {
    let mut client = Some(client);
    loop {
        thread::sleep(PERIOD);
        let connected = client.take().map_or_else(&connect, Ok);
        let answer = connected.and_then(|mut connected| {
            let look = Look::take(&mut connected)?;
            client = Some(connected);
            Ok(look)
        });
        if sender.send(Box::new(answer)).is_err() {
            return;
        }
    }
}

fn watch(
    terminal: &mut DefaultTerminal,
    first: Look,
    looks: &Receiver<Box<Answer>>,
    stop: &AtomicBool,
) -> io::Result<()> {
    let mut shown = Overview::since_start(first.clone());
    let mut before = first;
    let mut error = None;
    loop {
        terminal.draw(|frame| draw::draw(frame, &shown, error.as_deref()))?;
        loop {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            if event::poll(HEED)? {
                match event::read()? {
                    Event::Key(key) if ends(key) => return Ok(()),
                    Event::Resize(..) => break,
                    _ => {}
                }
            }
            match looks.recv_timeout(Duration::ZERO).map(|answer| *answer) {
                Ok(Ok(now)) => {
                    shown = Overview::between(&before, now.clone());
                    (before, error) = (now, None);
                    break;
                }
                Ok(Err(why)) => {
                    error = Some(why.to_string());
                    break;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }
}

fn ends(key: KeyEvent) -> bool {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind != KeyEventKind::Release
        && matches!(
            (key.code, control),
            (KeyCode::Char('q') | KeyCode::Esc, false) | (KeyCode::Char('c'), true)
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_keys_end_it() {
        let key = |code, modifiers| ends(KeyEvent::new(code, modifiers));
        assert!(key(KeyCode::Char('q'), KeyModifiers::NONE));
        assert!(key(KeyCode::Esc, KeyModifiers::NONE));
        assert!(key(KeyCode::Char('c'), KeyModifiers::CONTROL));
        assert!(!key(KeyCode::Char('c'), KeyModifiers::NONE));
        assert!(!key(KeyCode::Char('q'), KeyModifiers::CONTROL));
    }
}
