//! A homeserver, a contestant and its bots; rooms of humans with bots; and courses run through them.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use ruma::OwnedUserId;
use serde_json::json;

use crate::{
    ceiling::NewBot,
    contestant::{Contestant, Kind},
    homeserver::{
        Homeserver,
        course::{Course, Ping},
        state::State,
    },
    human::Human,
    usage::{Cluster, Cost},
};

/// The longest that answers to one course may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// How many answers of a course are decrypted afterwards.
const SAMPLE: usize = 50;

pub struct Scene {
    pub homeserver: Homeserver,
    pub contestant: Contestant,
    pub bots: Vec<NewBot>,
    pub cluster: Arc<Cluster>,
    /// How long it took to make the bots.
    pub onboarding: Duration,
    /// Bytes of the database before.
    pub empty: i64,
    humans: usize,
}

/// A human in a room with a bot.
#[derive(Clone)]
pub struct Room {
    pub id: Arc<str>,
    pub human: Arc<Human>,
    pub bot: NewBot,
    /// All bots of the room: where there are several, the message names its own.
    pub bots: Arc<[OwnedUserId]>,
}

impl Room {
    /// The message at `index` of a course.
    pub async fn ping(&self, course: u64, index: usize) -> Result<Ping> {
        let body = match self.bots.len() {
            1 => "!ping".to_owned(),
            _ => format!("!ping {}", self.bot.user_id),
        };
        self.human.ping(&self.id, &body, course, index).await
    }
}

/// What a course came to.
pub struct Outcome {
    /// From the first message until the last one that counts.
    pub elapsed: Duration,
    /// Messages answered in that time.
    pub answered: usize,
    /// Messages answered in all, which is what `cost` is of.
    pub all: usize,
    pub cost: Cost,
    pub course: Course,
}

impl Scene {
    pub async fn open(kind: Kind, cluster: &Arc<Cluster>, bots: usize) -> Result<Self> {
        let homeserver = Homeserver::start().await?;
        let contestant = Contestant::start(kind, &homeserver, cluster).await?;
        let empty = match &contestant.database {
            Some(database) => cluster.size(database).await?,
            None => 0,
        };
        let begun = Instant::now();
        let bots = contestant.bots(bots).await?;
        let onboarding = begun.elapsed();
        let cluster = Arc::clone(cluster);
        let scene = Self { homeserver, contestant, bots, cluster, onboarding, empty, humans: 0 };
        scene.contestant.settled().await?;
        Ok(scene)
    }

    /// New humans.
    pub async fn humans(&mut self, count: usize) -> Result<Vec<Arc<Human>>> {
        let mut humans = Vec::with_capacity(count);
        for _ in 0..count {
            self.humans += 1;
            let name = format!("h{}", self.humans);
            humans.push(Arc::new(Human::new(&self.homeserver, &name).await?));
        }
        Ok(humans)
    }

    /// An encrypted room of each of the first `count` bots with one of these humans, in turn. Each bot
    /// has joined, and the contestant has been told.
    pub async fn rooms(&self, count: usize, humans: &[Arc<Human>]) -> Result<Vec<Room>> {
        let mut rooms = Vec::with_capacity(count);
        for (index, bot) in self.bots.iter().cycle().take(count).enumerate() {
            let human = Arc::clone(&humans[index % humans.len()]);
            let id = self.homeserver.with(|state| {
                let request = json!({ "initial_state": [{ "type": "m.room.encryption",
                    "content": { "algorithm": "m.megolm.v1.aes-sha2" } }] });
                let room = state.create(human.name(), &request);
                state.member(&room, &bot.user_id, &bot.user_id, "join");
                room
            });
            let bots = [OwnedUserId::try_from(bot.user_id.as_str())?].into();
            rooms.push(Room { id: id.into(), human, bot: bot.clone(), bots });
        }
        self.contestant.settled().await?;
        Ok(rooms)
    }

    /// Holds everything back that is pushed from now on.
    pub fn hold(&self) {
        self.homeserver.with(|state| state.queue.held = true);
    }

    /// Messages of a new course, `count` of them, through these rooms in turn. New room keys go into
    /// the queue before.
    pub async fn prepare(&self, rooms: &[Room], count: usize) -> Result<Course> {
        let id = self.homeserver.with(State::number);
        for room in rooms {
            room.human.share(&room.id, &room.bots).await?;
        }
        let mut pings: Vec<Ping> = Vec::with_capacity(count);
        for (index, room) in rooms.iter().cycle().take(count).enumerate() {
            pings.push(room.ping(id, index).await?);
        }
        Ok(Course { id, pings, ..Course::default() })
    }

    /// Runs a course: `outstanding` messages at once and each answer brings the next one, until all are
    /// answered, or for `limit`; what is under way then is waited for and does not count.
    pub async fn run(
        &self,
        course: Course,
        outstanding: usize,
        limit: Option<Duration>,
    ) -> Result<Outcome> {
        let total = course.pings.len();
        let (pid, database) = (self.contestant.pid(), self.contestant.database.as_deref());
        let before = self.cluster.read_before(pid, database).await?;
        let begun = Instant::now();
        self.homeserver.with(|state| {
            state.course = course;
            state.course.closed_loop = true;
            for _ in 0..outstanding {
                state.course.push_next(&mut state.queue);
            }
            state.queue.held = false;
        });
        let mut end = None;
        if let Some(limit) = limit {
            tokio::time::sleep(limit).await;
            self.homeserver.with(|state| state.course.closed_loop = false);
            end = Some(Instant::now());
        }
        self.answered().await?;
        let after = self.cluster.read_after(pid, database).await?;
        let course = self.homeserver.with(|state| std::mem::take(&mut state.course));
        let last = course.pings.iter().filter_map(|ping| ping.answered).max();
        let last = last.context("nothing was answered")?;
        // Running out of messages ends the clock, too.
        let end = end.filter(|end| last > *end).unwrap_or(last);
        if limit.is_some() && course.next == total {
            eprintln!("    all prepared messages were used up");
        }
        Ok(Outcome {
            elapsed: end.duration_since(begun),
            answered: course.answered_until(end),
            all: course.answered,
            cost: self.cluster.cost(&before, &after).await?,
            course,
        })
    }

    /// Runs a course with a message each `interval`.
    pub async fn run_paced(&self, course: Course, interval: Duration) -> Result<Course> {
        let count = course.pings.len();
        self.homeserver.with(|state| {
            state.course = course;
            state.queue.held = false;
        });
        let mut clock = tokio::time::interval(interval);
        for _ in 0..count {
            clock.tick().await;
            self.homeserver.with(|state| state.course.push_next(&mut state.queue));
        }
        self.answered().await?;
        Ok(self.homeserver.with(|state| std::mem::take(&mut state.course)))
    }

    /// From the `PUT` until a message was logged, for all of them in order; nothing from the ceiling,
    /// which logs nothing. The commit with the row begins then, and is part of what an answer waits for.
    pub async fn until_logged(&self, course: &Course) -> Result<Vec<Duration>> {
        let Some(database) = &self.contestant.database else { return Ok(Vec::new()) };
        let ids = |index| Course::event_id(course.id, index);
        let pushed: HashMap<String, Instant> = (course.pings.iter().enumerate())
            .filter_map(|(index, ping)| Some((ids(index), ping.pushed?)))
            .collect();
        let events: Vec<String> = pushed.keys().cloned().collect();
        let logged = self.cluster.logged_at(database, &events).await?;
        ensure!(logged.len() == events.len(), "{} of {} logged", logged.len(), events.len());
        let (now, clock) = (SystemTime::now().duration_since(UNIX_EPOCH)?, Instant::now());
        let mut all: Vec<Duration> = (logged.iter())
            .filter_map(|(event, at)| {
                let pushed = now.checked_sub(clock.duration_since(*pushed.get(event)?))?;
                Some(Duration::from_secs_f64(*at).saturating_sub(pushed))
            })
            .collect();
        all.sort_unstable();
        Ok(all)
    }

    /// Until all that was asked is answered.
    async fn answered(&self) -> Result<()> {
        let there =
            |state: &State| state.course.answered >= state.course.next && state.queue.is_empty();
        let waited = self.homeserver.until("all answers", PATIENCE, there).await;
        waited.with_context(|| {
            let (answered, asked) = self.homeserver.with(|s| (s.course.answered, s.course.next));
            format!("{answered} of {asked} answered\n{}", self.contestant.log_tail())
        })
    }

    /// Decrypts a sample of the answers, as the humans who asked. An answer that nobody can read, or
    /// that is no `pong`, or a second one, fails the run.
    pub async fn check(&self, course: &Course, rooms: &[Room]) -> Result<()> {
        ensure!(course.doubled == 0, "{} messages were answered twice", course.doubled);
        let step = (course.pings.len() / SAMPLE).max(1);
        for (index, ping) in course.pings.iter().enumerate().step_by(step) {
            let Some(content) = &ping.answer else { continue };
            let room = &rooms[index % rooms.len()];
            room.human.sync().await?;
            let said = room.human.read(&ping.room, &room.bot.user_id, content).await;
            let said = said.with_context(|| format!("the answer in {}", ping.room))?;
            ensure!(said == "pong", "the answer was {said:?}");
        }
        Ok(())
    }
}
