//! `podway top`: a node on a terminal, once a second.
//!
//! Threads of their own ask control and watch at the dataplane, so that keys and signals are heeded whatever
//! becomes of that; they connect anew when a daemon was started anew. The end of the process is theirs, and
//! that of the watch.

mod draw;
mod flows;

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;
use std::time::Duration;

use podway_proto::client::{Client, ClientError};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::overview::{Look, Overview};
use crate::watch::Reach;
use flows::Panel;

/// Between two looks, and of the flows that are added up.
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
    dataplane: Reach,
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
    let (sender, news) = channel();
    let seen = sender.clone();
    thread::spawn(move || flows::follow(dataplane, |panel| seen.send(News::Flows(panel)).is_ok()));
    thread::spawn(move || ask(connect, client, &sender));
    let mut terminal = ratatui::try_init()?;
    let result = watch(&mut terminal, Picture::new(first), &news, &stop);
    ratatui::try_restore()?;
    Ok(result?)
}

/// What the threads have to say.
enum News {
    Look(Box<Result<Look, ClientError>>),
    Flows(Panel),
}

/// Asks once a period, until nobody listens.
fn ask(connect: impl Fn() -> Result<Client, ClientError>, client: Client, sender: &Sender<News>) {
    let mut client = Some(client);
    loop {
        thread::sleep(PERIOD);
        let connected = client.take().map_or_else(&connect, Ok);
        let answer = connected.and_then(|mut connected| {
            let look = Look::take(&mut connected)?;
            client = Some(connected);
            Ok(look)
        });
        if sender.send(News::Look(Box::new(answer))).is_err() {
            return;
        }
    }
}

/// All that is drawn.
struct Picture {
    overview: Overview,
    /// Why that is old.
    error: Option<String>,
    flows: Panel,
    /// What the next look is compared with.
    last: Look,
}

impl Picture {
    fn new(first: Look) -> Self {
        Self {
            overview: Overview::since_start(first.clone()),
            error: None,
            flows: Err("the dataplane is asked".to_owned()),
            last: first,
        }
    }

    fn heed(&mut self, news: News) {
        match news {
            News::Flows(panel) => self.flows = panel,
            News::Look(answer) => match *answer {
                Ok(now) => {
                    self.overview = Overview::between(&self.last, now.clone());
                    (self.last, self.error) = (now, None);
                }
                Err(why) => self.error = Some(why.to_string()),
            },
        }
    }
}

fn watch(
    terminal: &mut DefaultTerminal,
    mut picture: Picture,
    news: &Receiver<News>,
    stop: &AtomicBool,
) -> io::Result<()> {
    loop {
        terminal.draw(|frame| draw::draw(frame, &picture))?;
        let mut is_old = false;
        while !is_old {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            if event::poll(HEED)? {
                match event::read()? {
                    Event::Key(key) if ends(key) => return Ok(()),
                    Event::Resize(..) => is_old = true,
                    _ => {}
                }
            }
            loop {
                match news.try_recv() {
                    Ok(news) => picture.heed(news),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return Ok(()),
                }
                is_old = true;
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
    use std::time::Instant;

    use super::flows::tests::period;
    use super::*;
    use crate::overview::tests::look;

    #[test]
    fn what_is_not_told_stays_as_it_was() {
        let start = Instant::now();
        let mut picture = Picture::new(look(start, 1));
        assert!(picture.overview.since_start);
        picture.heed(News::Flows(Ok(period())));
        picture.heed(News::Look(Box::new(Ok(look(start, 3)))));
        assert_eq!(picture.overview.seconds, 2.0);
        assert!(picture.flows.is_ok());
        let nobody = ClientError::Refused(podway_proto::ErrorBody::new(
            podway_proto::ErrorCode::System,
            "nobody",
        ));
        picture.heed(News::Look(Box::new(Err(nobody))));
        assert_eq!(picture.error.as_deref(), Some("nobody"));
        assert_eq!(picture.overview.seconds, 2.0);
        picture.heed(News::Flows(Err("no watch".into())));
        assert_eq!(
            picture.flows.as_ref().err().map(String::as_str),
            Some("no watch")
        );
        picture.heed(News::Look(Box::new(Ok(look(start, 4)))));
        assert_eq!((picture.overview.seconds, picture.error), (1.0, None));
    }

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
