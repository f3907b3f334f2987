//! The logs of both daemons: where they go, in which form, and which of them.
//!
//! A process has one log, so it is a global: [`start`] makes it, [`set`] changes what is logged while
//! the daemon runs. Whoever says the same over and over is heard [`MOST`] times a second
//! (`limit`); the loop of each daemon tells the rest by [`tell_suppressed`] where no line comes that
//! does. Nothing on the path of a packet logs at all.

mod limit;

use std::fmt;
use std::io::{IsTerminal as _, Write as _};
use std::str::FromStr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{Format, FormatEvent, FormatFields, JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, reload};

use crate::{ErrorBody, ErrorCode};
use limit::{Admission, Limiter, Silenced};

pub use limit::MOST;

/// What is logged when nobody says it.
pub const DEFAULT: &str = "info";

/// The form of a line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// A JSON object for programs.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            other => Err(format!(
                "'{other}' is no form of a log; write human or json"
            )),
        }
    }
}

/// What is logged now, and the means to change it.
#[derive(Debug)]
struct Current {
    filter: reload::Handle<EnvFilter, Registry>,
    directives: Mutex<String>,
    repeats: Arc<Repeats>,
}

static CURRENT: OnceLock<Current> = OnceLock::new();

/// What to log: what the command line says, or the environment (`PODWAY_LOG`, `RUST_LOG`), or
/// [`DEFAULT`].
pub fn directives(told: Option<&str>) -> String {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let of_environment = || variable("PODWAY_LOG").or_else(|| variable("RUST_LOG"));
    let told = told.map(str::to_owned).or_else(of_environment);
    told.unwrap_or_else(|| DEFAULT.to_owned())
}

/// Begins to log to standard error what `directives` say; a second log is refused.
///
/// # Errors
/// What is wrong with the directives, or that there is a log already.
pub fn start(directives: &str, format: LogFormat) -> Result<(), ErrorBody> {
    let (layer, filter) = reload::Layer::new(parse(directives)?);
    let repeats = Arc::new(Repeats::new(format));
    let current = Current {
        filter,
        directives: Mutex::new(directives.trim().to_owned()),
        repeats: Arc::clone(&repeats),
    };
    let ansi = std::io::stderr().is_terminal();
    let lines = lines(repeats, std::io::stderr, ansi);
    let subscriber = Registry::default().with(layer).with(lines);
    tracing::subscriber::set_global_default(subscriber)
        .map_err(|_| ErrorBody::new(ErrorCode::AlreadyExists, "this process has a log already"))?;
    let _ = CURRENT.set(current);
    Ok(())
}

/// Tells how many lines were left out in the seconds that have ended by `now`, if no line came since
/// that told it. Gives the time at which there is more to tell.
pub fn tell_suppressed(now: Instant) -> Option<Instant> {
    let repeats = &CURRENT.get()?.repeats;
    let (text, owed) = repeats.ended(now);
    say(&text);
    owed
}

/// Tells how many lines were left out, whatever second it is: the process ends.
pub fn finish() {
    if let Some(current) = CURRENT.get() {
        say(&current.repeats.all());
    }
}

fn say(text: &str) {
    if !text.is_empty() {
        // As with any line: nobody is left to be told.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

/// Changes what is logged.
///
/// # Errors
/// `Invalid` says what is wrong with the directives; nothing has changed then.
pub fn set(directives: &str) -> Result<(), ErrorBody> {
    let filter = parse(directives)?;
    let unchanged = || {
        ErrorBody::new(
            ErrorCode::System,
            "the log of this process cannot be changed",
        )
    };
    let current = CURRENT.get().ok_or_else(unchanged)?;
    current.filter.reload(filter).map_err(|_| unchanged())?;
    if let Ok(mut now) = current.directives.lock() {
        directives.trim().clone_into(&mut now);
    }
    Ok(())
}

/// What is logged now; empty where nothing is.
pub fn current() -> String {
    let directives = CURRENT
        .get()
        .and_then(|current| current.directives.lock().ok());
    directives
        .map(|directives| directives.clone())
        .unwrap_or_default()
}

/// Looks whether directives can be used, as [`set`] would.
///
/// # Errors
/// As [`set`].
pub fn check(directives: &str) -> Result<(), ErrorBody> {
    parse(directives).map(drop)
}

fn parse(directives: &str) -> Result<EnvFilter, ErrorBody> {
    const REMEDY: &str = "write a level (error, warn, info, debug, trace, off) or directives such as \
                          warn,podway_control::health=debug";
    let wrong = |why: &str| {
        ErrorBody::new(
            ErrorCode::Invalid,
            format!("'{directives}' says nothing of a log: {why}; {REMEDY}"),
        )
    };
    if directives.trim().is_empty() {
        return Err(wrong("it is empty"));
    }
    // A word alone that is no level would be taken for the name of a module.
    for word in directives.split(',').map(str::trim) {
        let is_level = tracing_subscriber::filter::LevelFilter::from_str(word).is_ok();
        if !word.contains(['=', ':', '[', '_']) && !is_level {
            return Err(wrong(&format!("'{word}' is no level")));
        }
    }
    let filter = EnvFilter::builder().parse(directives.trim());
    filter.map_err(|error| wrong(&error.to_string()))
}

type BoxedLayer<S> = Box<dyn tracing_subscriber::Layer<S> + Send + Sync>;

/// Writes lines by `writer`, in the form that `repeats` have.
fn lines<S, W>(repeats: Arc<Repeats>, writer: W, ansi: bool) -> BoxedLayer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer();
    match repeats.form {
        LogFormat::Human => {
            let lines = Format::default().with_ansi(ansi);
            layer
                .with_ansi(ansi)
                .with_writer(writer)
                .event_format(Limited { lines, repeats })
                .boxed()
        }
        LogFormat::Json => {
            let lines = Format::default().json();
            layer
                .fmt_fields(JsonFields::new())
                .with_writer(writer)
                .event_format(Limited { lines, repeats })
                .boxed()
        }
    }
}

/// Lines of another form, without those that say the same too often.
struct Limited<F> {
    lines: F,
    repeats: Arc<Repeats>,
}

/// What was said too often, and the form in which that is told.
#[derive(Debug)]
struct Repeats {
    form: LogFormat,
    limiter: Mutex<Limiter>,
}

impl Repeats {
    fn new(form: LogFormat) -> Self {
        Self {
            form,
            limiter: Mutex::default(),
        }
    }

    fn admit(&self, event: &Event<'_>, now: Instant) -> Admission {
        match self.limiter.lock() {
            Ok(mut limiter) => limiter.admit(event, now),
            Err(_) => Admission::default(),
        }
    }

    /// Lines about what was left out in windows that have ended, and when there are more of them.
    fn ended(&self, now: Instant) -> (String, Option<Instant>) {
        let (silenced, owed) = match self.limiter.lock() {
            Ok(mut limiter) => (limiter.ended(now), limiter.owed()),
            Err(_) => return Default::default(),
        };
        (self.text(&silenced), owed)
    }

    /// Lines about all that was left out.
    fn all(&self) -> String {
        let silenced = self.limiter.lock().map(|mut limiter| limiter.all());
        self.text(&silenced.unwrap_or_default())
    }

    fn text(&self, silenced: &[Silenced]) -> String {
        let mut text = String::new();
        for silenced in silenced {
            // What is written to is memory.
            let _ = self.tell(&mut Writer::new(&mut text), silenced);
        }
        text
    }

    /// How many lines were left out of one place, as a line.
    fn tell(&self, writer: &mut Writer<'_>, silenced: &Silenced) -> fmt::Result {
        let Silenced {
            target,
            text,
            count,
        } = silenced;
        match self.form {
            LogFormat::Human => {
                SystemTime.format_time(writer)?;
                writeln!(writer, "  WARN {target}: suppressed {count} more: {text}")
            }
            LogFormat::Json => {
                let mut time = String::new();
                SystemTime.format_time(&mut Writer::new(&mut time))?;
                let line = serde_json::json!({
                    "timestamp": time,
                    "level": "WARN",
                    "fields": {"message": format!("suppressed {count} more: {text}"), "suppressed": count},
                    "target": target,
                });
                writeln!(writer, "{line}")
            }
        }
    }
}

impl<S, N, F> FormatEvent<S, N> for Limited<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'w> FormatFields<'w> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let admitted = self.repeats.admit(event, Instant::now());
        for silenced in &admitted.silenced {
            self.repeats.tell(&mut writer, silenced)?;
        }
        match admitted.refused {
            // What is written is nothing then.
            true => Ok(()),
            false => self.lines.format_event(context, writer, event),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::*;

    /// Lines in memory.
    #[derive(Debug, Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Memory {
        fn lines(&self) -> Vec<String> {
            let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            text.lines().map(str::to_owned).collect()
        }
    }

    fn logged(form: LogFormat, log: impl FnOnce()) -> Vec<String> {
        logged_by(&Arc::new(Repeats::new(form)), log)
    }

    fn logged_by(repeats: &Arc<Repeats>, log: impl FnOnce()) -> Vec<String> {
        let memory = Memory::default();
        let writer = memory.clone();
        let layer = lines(Arc::clone(repeats), move || writer.clone(), false);
        tracing::subscriber::with_default(Registry::default().with(layer), log);
        memory.lines()
    }

    fn say(times: u32) {
        for _ in 0..times {
            tracing::warn!(port = "eth0", "cannot do it");
        }
    }

    #[test]
    fn the_same_message_is_heard_so_often_and_then_counted() {
        let lines = logged(LogFormat::Human, || {
            say(MOST + 5);
            tracing::info!("something else");
            std::thread::sleep(limit::WINDOW);
            tracing::info!("later");
        });
        let most = usize::try_from(MOST).unwrap();
        assert_eq!(lines.len(), most + 3, "{lines:#?}");
        assert!(
            lines[0].ends_with("cannot do it port=\"eth0\""),
            "{}",
            lines[0]
        );
        assert!(lines[most].ends_with("something else"));
        let counted = &lines[most + 1];
        assert!(
            counted.contains("  WARN podway_proto::log::tests: suppressed 5 more: cannot do it"),
            "{counted}"
        );
        assert!(lines[most + 2].ends_with("later"));
    }

    #[test]
    fn what_was_left_out_is_told_when_no_other_line_comes() {
        let repeats = Arc::new(Repeats::new(LogFormat::Human));
        let most = usize::try_from(MOST).unwrap();
        let heard = logged_by(&repeats, || say(MOST + 5));
        assert_eq!(heard.len(), most, "{heard:#?}");
        let (text, owed) = repeats.ended(Instant::now());
        assert_eq!(text, "", "its second has not ended");
        let (text, more) = repeats.ended(owed.unwrap());
        let told =
            "  WARN podway_proto::log::tests: suppressed 5 more: cannot do it port=\"eth0\"\n";
        assert!(text.ends_with(told) && text.lines().count() == 1, "{text}");
        assert_eq!(more, None);
        assert_eq!(repeats.all(), "", "it is told once");
        logged_by(&repeats, || say(MOST + 2));
        let text = repeats.all();
        assert!(text.contains("suppressed 2 more"), "at the end: {text}");
        assert_eq!(repeats.ended(Instant::now() + limit::WINDOW).0, "");
    }

    #[test]
    fn lines_for_programs_are_objects() {
        let lines = logged(LogFormat::Json, || {
            say(MOST + 1);
            std::thread::sleep(limit::WINDOW);
            tracing::info!("later");
        });
        let objects: Vec<serde_json::Value> = lines
            .iter()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(objects[0]["fields"]["port"], "eth0");
        assert_eq!(objects[0]["level"], "WARN");
        let counted = &objects[usize::try_from(MOST).unwrap()];
        assert_eq!(counted["fields"]["suppressed"], 1);
        for object in &objects {
            for key in ["timestamp", "level", "fields", "target"] {
                assert!(object.get(key).is_some(), "{key} in {object}");
            }
        }
    }

    #[test]
    fn directives_are_checked() {
        for good in [
            "info",
            "WARN",
            "off",
            "warn,podway_control::health=debug",
            "podway_dataplane=trace",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in ["", " ", "loud", "info,loud", "podway_control=loud", "a=b=c"] {
            let error = check(bad).unwrap_err();
            assert_eq!(error.code, ErrorCode::Invalid, "{bad}");
            assert!(error.message.contains("write a level"), "{error}");
        }
    }

    #[test]
    fn a_process_has_one_log_which_changes() {
        assert_eq!(current(), "");
        assert_eq!(
            set("debug").unwrap_err().code,
            ErrorCode::System,
            "there is none yet"
        );
        start("warn", LogFormat::Human).unwrap();
        assert_eq!(current(), "warn");
        set(" debug ").unwrap();
        assert_eq!(current(), "debug");
        assert!(tracing::enabled!(tracing::Level::DEBUG));
        set("loud").unwrap_err();
        assert_eq!(current(), "debug");
        set("error").unwrap();
        assert!(!tracing::enabled!(tracing::Level::INFO));
        let second = start("info", LogFormat::Json).unwrap_err();
        assert_eq!(second.code, ErrorCode::AlreadyExists);
    }
}
