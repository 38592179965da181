//! The JS human's process: Node.js, and the JSON lines we exchange with it.
//!
//! `{"id","method","params"}` there, `{"id","result"}` or
//! `{"id","error":{"message","code"?}}` back, in any order.
//! `tests/human-js` is the other side.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead as _, Write as _},
    path::Path,
    process::{ChildStdin, Command},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use crate::support::{
    installed,
    process::{Guarded, Output},
    scratch::Scratch,
};

/// Added to the patience that Node.js is told, so that its own, better error comes first.
const MARGIN: Duration = Duration::from_secs(15);

type Answer = oneshot::Sender<Result<Value, String>>;

/// The calls that wait for an answer. The lock is held for a moment only, and never over a panic.
type Waiting = Arc<Mutex<HashMap<u64, Answer>>>;

pub(super) struct Node {
    /// Whose client this is, for errors.
    user_id: String,
    next_id: AtomicU64,
    input: Mutex<ChildStdin>,
    waiting: Waiting,
    process: Guarded,
    /// After the process, which logs into it.
    _dir: Scratch,
}

impl Node {
    pub(super) fn start(user_id: &str) -> Result<Self> {
        let installed = installed::human_js()?;
        bring_up_to_date(&installed)?;
        let mut program = Command::new(installed.join("node_modules/.bin/node"));
        program.arg(installed.join("human.mjs")).current_dir(&installed);
        let dir = Scratch::new("human-js")?;
        let log = dir.path().join("human.log");
        let mut process = Guarded::start("the JS human", &program, &log, Output::Pipe)?;
        let input = process.input.take().context("standard input is piped")?;
        let output = process.output.take().context("standard output is piped")?;
        let waiting = Waiting::default();
        let answers = waiting.clone();
        // Ends with the process.
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                deliver(&answers, &line);
            }
            answers.lock().expect(UNPOISONED).clear();
        });
        Ok(Self {
            user_id: user_id.to_owned(),
            next_id: AtomicU64::new(1),
            input: Mutex::new(input),
            waiting,
            process,
            _dir: dir,
        })
    }

    /// Calls a method, and waits a little longer than the human may take.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        params: Value,
        patience: Duration,
    ) -> Result<T> {
        let what = || match method {
            "login" => format!("{} (JS): login", self.user_id),
            _ => format!("{} (JS): {method} {params}", self.user_id),
        };
        let answer = self.ask(method, &params).with_context(what)?;
        let answered = tokio::time::timeout(patience + MARGIN, answer).await;
        let result = match answered {
            Ok(Ok(Ok(result))) => Ok(result),
            Ok(Ok(Err(error))) => Err(anyhow!(error)),
            Ok(Err(_)) => Err(anyhow!("Node.js ended. {}", self.process.log_tail())),
            Err(_) => Err(anyhow!("no answer. {}", self.process.log_tail())),
        };
        let result = result.with_context(what)?;
        T::deserialize(&result).with_context(|| format!("{} answered {result}", what()))
    }

    fn ask(
        &self,
        method: &str,
        params: &Value,
    ) -> Result<oneshot::Receiver<Result<Value, String>>> {
        // JavaScript tells "absent" from null, and means absent.
        let given = params.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
        let params: Map<_, _> = given.map(|(name, value)| (name.clone(), value.clone())).collect();
        let (answer, answered) = oneshot::channel();
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.waiting.lock().expect(UNPOISONED).insert(id, answer);
        let line = json!({ "id": id, "method": method, "params": params });
        let mut input = self.input.lock().expect(UNPOISONED);
        writeln!(input, "{line}").with_context(|| self.process.log_tail())?;
        Ok(answered)
    }
}

const UNPOISONED: &str = "no holder of this lock panics";

/// Brings the scripts beside their `node_modules`, where Node.js looks for imports. By rename,
/// because other processes may be reading the same file.
fn bring_up_to_date(installed: &Path) -> Result<()> {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/human-js");
    for script in fs::read_dir(scripts)? {
        let script = script?.path();
        let Some(name) = script.file_name().filter(|_| script.extension() == Some("mjs".as_ref()))
        else {
            continue;
        };
        let (now, target) = (fs::read(&script)?, installed.join(name));
        if fs::read(&target).ok().as_ref() != Some(&now) {
            let mut copy = tempfile::NamedTempFile::new_in(installed)?;
            copy.write_all(&now)?;
            copy.persist(target)?;
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct Reply {
    id: u64,
    result: Option<Value>,
    error: Option<Value>,
}

/// Hands an answer to whoever waits for it. Anything else on that stream is chatter.
fn deliver(waiting: &Mutex<HashMap<u64, Answer>>, line: &str) {
    let Ok(reply) = serde_json::from_str::<Reply>(line) else {
        return;
    };
    let waiter = waiting.lock().expect(UNPOISONED).remove(&reply.id);
    let Some(waiter) = waiter else { return };
    let answer = match reply.error {
        None => Ok(reply.result.unwrap_or_default()),
        Some(error) => Err(match (error["message"].as_str(), error["code"].as_str()) {
            (Some(message), Some(code)) => format!("{message} ({code})"),
            (Some(message), None) => message.to_owned(),
            _ => error.to_string(),
        }),
    };
    let _ = waiter.send(answer);
}
