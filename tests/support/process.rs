//! A program that dies with the test process, even when that one is killed with SIGKILL.
//!
//! Rust can ask the kernel for that only with `unsafe`, so a shell stands between: it holds the
//! other end of a pipe of ours, and kills the program when the pipe closes, which the kernel does
//! for us in every kind of death. The same pipe is the program's standard input.
//!
//! What the program writes goes to a log, and every error about the program shows its end.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::poll::Wait;

/// `$1` is the log, `$2` says where standard output goes, the rest is the program.
///
/// The first line on our side is the program's own process id.
const GUARD: &str = r#"
log=$1 output=$2; shift 2
if [[ $output == log ]]; then
    exec {program}> >(echo "$BASHPID"; exec "$@" >>"$log" 2>&1)
else
    exec {program}> >(echo "$BASHPID"; exec "$@" 2>>"$log")
fi
pid=$!
{ cat >&"$program"; kill -KILL "$pid"; } <&0 >/dev/null 2>&1 &
killer=$!
exec {program}>&- >&-
wait "$pid"
status=$?
kill "$killer"
exit "$status"
"#;

/// Where a program's standard output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Into the log, beside its standard error.
    Log,
    /// To us.
    Pipe,
}

/// Signals that tests send.
#[derive(Clone, Copy, Debug)]
pub enum Signal {
    Term,
    Kill,
    /// How PostgreSQL is told to fall over.
    Quit,
    /// Freezes the program: a homeserver or a worker that hangs.
    Stop,
    /// Thaws it.
    Cont,
}

pub struct Guarded {
    name: String,
    log: PathBuf,
    pid: u32,
    guard: Child,
    /// The program's standard input. Closing it kills the program.
    pub input: Option<ChildStdin>,
    /// The program's standard output, with [`Output::Pipe`].
    pub output: Option<BufReader<ChildStdout>>,
}

impl Guarded {
    /// Starts `program`. Its environment and working directory are those of the command.
    pub fn start(name: &str, program: &Command, log: &Path, output: Output) -> Result<Self> {
        let mut command = Command::new("bash");
        command
            .args(["-c", GUARD, "guard"])
            .arg(log)
            .arg(if output == Output::Log { "log" } else { "pipe" })
            .arg(program.get_program())
            .args(program.get_args())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        for (variable, value) in program.get_envs() {
            match value {
                Some(value) => command.env(variable, value),
                None => command.env_remove(variable),
            };
        }
        if let Some(directory) = program.get_current_dir() {
            command.current_dir(directory);
        }
        let mut guard = command.spawn().context("starting bash")?;
        let input = guard.stdin.take();
        let mut lines = BufReader::new(guard.stdout.take().context("standard output is piped")?);
        let mut pid = String::new();
        lines.read_line(&mut pid)?;
        let pid = pid.trim().parse().with_context(|| format!("{name} did not start"))?;
        let output = (output == Output::Pipe).then_some(lines);
        Ok(Self { name: name.to_owned(), log: log.to_owned(), pid, guard, input, output })
    }

    /// The program's own process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal; `false` if the program is gone. Whoever is told to stand still does so when this
    /// returns: on its way the signal lets the program's other threads run on.
    pub fn signal(&self, signal: Signal) -> bool {
        let name = match signal {
            Signal::Term => "-TERM",
            Signal::Kill => "-KILL",
            Signal::Quit => "-QUIT",
            Signal::Stop => "-STOP",
            Signal::Cont => "-CONT",
        };
        let sent = Command::new("kill")
            .args([name, &self.pid.to_string()])
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        while sent && matches!(signal, Signal::Stop) && self.moves() {
            std::thread::yield_now();
        }
        sent
    }

    /// Whether any thread of the program is neither stopped nor dead.
    fn moves(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten();
        threads.flatten().any(|thread| {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            // After the name, which may contain anything.
            let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
            state.is_some_and(|state| !"TtZX".contains(state))
        })
    }

    /// Whether the program still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.guard.try_wait(), Ok(None))
    }

    /// Waits until `url` answers 2xx. Fails at once if the program ends before.
    pub async fn wait_for_http(&mut self, url: &str, deadline: Duration) -> Result<()> {
        let http = super::http();
        let mut wait = Wait::new(format!("{} to answer at {url}", self.name), deadline);
        loop {
            let answer = http.get(url).timeout(Duration::from_secs(2)).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            if !self.is_running() {
                bail!("{} ended\n{}", self.name, self.log_tail());
            }
            wait.again().await.with_context(|| self.log_tail())?;
        }
    }

    /// Asks the program to end, and waits until it has.
    pub async fn stop(&mut self, deadline: Duration) -> Result<()> {
        self.end(Signal::Term, deadline).await
    }

    /// Kills the program, and waits until it is gone.
    pub async fn kill(&mut self) -> Result<()> {
        self.end(Signal::Kill, Duration::from_secs(10)).await
    }

    async fn end(&mut self, signal: Signal, deadline: Duration) -> Result<()> {
        self.signal(signal);
        let mut wait = Wait::new(format!("{} to end after {signal:?}", self.name), deadline);
        while self.is_running() {
            wait.again().await.with_context(|| self.log_tail())?;
        }
        Ok(())
    }

    /// Where it writes what it has to say.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The end of the log, with its path.
    pub fn log_tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(40)..].join("\n");
        format!("{} ({}) said last:\n{tail}\n", self.name, self.log.display())
    }
}

impl Drop for Guarded {
    /// Waits for the end, so that what the program uses can be removed after it.
    fn drop(&mut self) {
        if self.is_running() {
            self.signal(Signal::Kill);
        }
        self.input.take();
        let _ = self.guard.wait();
    }
}
