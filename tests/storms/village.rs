//! People and bots in direct and in shared rooms, who never stop talking.

use std::time::{Duration, Instant};

use anyhow::Result;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use url::Url;

use crate::{
    fast::scene::{Bot, Scene},
    support::{
        fake_homeserver::{FakeHomeserver, Person},
        report,
    },
};

/// Long: after a storm there is much to catch up with.
pub const PATIENCE: Duration = Duration::from_secs(240);
/// One message after the other, all people together.
const TEMPO: Duration = Duration::from_millis(60);
/// With so many unanswered people wait.
const TOO_MANY: usize = 120;
/// Bots are invited into new rooms until there are so many.
const MOST_ROOMS: usize = 60;

pub struct Village {
    pub scene: Scene,
    pub folk: Folk,
}

/// Everybody, and what they said.
pub struct Folk {
    pub people: Vec<Person>,
    /// A second device of the first person, which only reads.
    pub phone: Person,
    pub bots: Vec<Bot>,
    pub rooms: Vec<Room>,
    pub said: Vec<Said>,
    /// How many of the rooms bots were invited into while people talked.
    pub invitations: usize,
    fake: FakeHomeserver,
}

/// An encrypted room, with its people and bots by number.
pub struct Room {
    pub id: String,
    pub people: Vec<usize>,
    pub bots: Vec<usize>,
    /// Whether a bot introduced itself here.
    pub is_direct: bool,
}

pub struct Said {
    pub event_id: String,
    pub room: usize,
    /// Whether every bot of the room has to answer.
    pub is_ping: bool,
}

impl Village {
    /// A few in the suite, more in a large storm.
    pub async fn found() -> Result<Self> {
        Self::settle(Scene::start().await?).await
    }

    /// The same, on a database that somebody else looks after.
    pub async fn found_on(database: &Url) -> Result<Self> {
        Self::settle(Scene::on(database).await?).await
    }

    async fn settle(scene: Scene) -> Result<Self> {
        let (people_count, bot_count) = if report::is_large() { (4, 6) } else { (2, 2) };
        let mut people = Vec::new();
        for name in 0..people_count {
            people.push(Person::new(&scene.fake, &format!("person{name}")).await?);
        }
        let phone = people[0].another_device("PHONE").await?;
        let (mut bots, mut rooms) = (Vec::new(), Vec::new());
        for number in 0..bot_count {
            let owner = number % people.len();
            let bot = scene.bot(&people[owner]).await?;
            let (id, people, bots_there) = (bot.room.clone(), vec![owner], vec![number]);
            rooms.push(Room { id, people, bots: bots_there, is_direct: true });
            bots.push(bot);
        }
        // In each shared room all people, and half of the bots; in the last one all of them.
        let half = bot_count.div_ceil(2);
        for bots_there in [(0..half).collect(), (0..bot_count).collect::<Vec<_>>()] {
            let members = people.iter().map(|person| person.user_id.as_str());
            let bot_ids = bots_there.iter().map(|bot: &usize| bots[*bot].user_id.as_str());
            let members: Vec<&str> = members.chain(bot_ids).collect();
            let id = scene.fake.room(members[0], true, &members[1..]);
            let people = (0..people.len()).collect();
            rooms.push(Room { id, people, bots: bots_there, is_direct: false });
        }
        let fake = scene.fake.clone();
        let folk = Folk { people, phone, bots, rooms, said: Vec::new(), invitations: 0, fake };
        let village = Self { scene, folk };
        village.caught_up().await?;
        Ok(village)
    }

    /// Until everything that was said is taken in, read and answered, and nothing waits for a key.
    pub async fn caught_up(&self) -> Result<()> {
        let left = "SELECT (SELECT COUNT(*) FROM inbox WHERE kind <> 'reconcile')
                + (SELECT COUNT(*) FROM outbox WHERE state = 'queued')";
        let what = "everything to be read and answered";
        match self.scene.until_none(what, PATIENCE, left, FakeHomeserver::all_pushed).await {
            Ok(()) => Ok(()),
            Err(error) => Err(error.context(self.left_over().await?)),
        }
    }

    /// What waits, and for what, in words.
    async fn left_over(&self) -> Result<String> {
        let left: Vec<String> = sqlx::query_scalar(
            "SELECT CONCAT_WS(' ', 'inbox', bot_id, kind, event_id, 'attempts', attempts, 'due in',
                EXTRACT(EPOCH FROM due_at - NOW()), waiting_for, waiting_reason)
            FROM inbox LEFT JOIN events USING (event_seq)
            UNION ALL
            SELECT CONCAT_WS(' ', 'outbox', bot_id, room_id, txn_id, 'attempts', attempts, 'due in',
                EXTRACT(EPOCH FROM due_at - NOW()), error)
            FROM outbox WHERE state = 'queued'
            UNION ALL
            SELECT CONCAT_WS(' ', 'bot', bot_id, user_id, 'due in',
                EXTRACT(EPOCH FROM due_at - NOW()), 'failures', failures, last_error)
            FROM bots LEFT JOIN bot_queue USING (bot_id)",
        )
        .fetch_all(&self.scene.sql)
        .await?;
        let log = self.scene.greenshield.log_tail().unwrap_or_default();
        Ok(format!("pushed: {}\n{}\n{log}", self.scene.fake.is_pushed(), left.join("\n")))
    }
}

impl Folk {
    /// Says something, somewhere.
    pub async fn say(&mut self, room: usize, person: usize, text: &str) -> Result<String> {
        let event_id = self.people[person].say(&self.rooms[room].id, text).await?;
        let is_ping = text == "!ping";
        self.said.push(Said { event_id: event_id.clone(), room, is_ping });
        Ok(event_id)
    }

    /// Opens a room, invites two bots, and does not wait for them with the first `!ping`.
    async fn invite(&mut self, dice: &mut StdRng) -> Result<()> {
        let person = dice.random_range(0..self.people.len());
        let first = dice.random_range(0..self.bots.len());
        let bots = vec![first, (first + 1) % self.bots.len()];
        let invited: Vec<&str> = bots.iter().map(|bot| self.bots[*bot].user_id.as_str()).collect();
        let id = self.fake.room_by_invitation(&self.people[person].user_id, &invited);
        self.rooms.push(Room { id, people: vec![person], bots, is_direct: false });
        self.invitations += 1;
        self.say(self.rooms.len() - 1, person, "!ping").await?;
        Ok(())
    }

    /// Talks until it is time: chat and `!ping`, in all rooms, with a new room key now and then, and bots
    /// invited into new rooms.
    pub async fn talk(&mut self, seed: u64, until: Instant) -> Result<()> {
        let mut dice = StdRng::seed_from_u64(seed);
        let mut tempo = tokio::time::interval(TEMPO);
        tempo.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.invite(&mut dice).await?;
        while Instant::now() < until {
            tempo.tick().await;
            if self.unanswered() > TOO_MANY || self.fake.unpushed() > TOO_MANY {
                continue;
            }
            if self.rooms.len() < MOST_ROOMS && dice.random_bool(0.02) {
                self.invite(&mut dice).await?;
            }
            let room = dice.random_range(0..self.rooms.len());
            let person = *self.rooms[room].people.choose(&mut dice).unwrap_or(&0);
            if dice.random_bool(0.2) {
                self.people[person].forget_key(&self.rooms[room].id).await?;
            }
            if dice.random_bool(0.1) {
                self.people[person].sync().await?;
            }
            let chat = format!("message {}", self.said.len());
            let text = if dice.random_bool(0.3) { "!ping" } else { chat.as_str() };
            self.say(room, person, text).await?;
        }
        Ok(())
    }

    /// The room where everybody is.
    pub fn square(&self) -> usize {
        let everybody =
            |it: &Room| it.people.len() == self.people.len() && it.bots.len() == self.bots.len();
        self.rooms.iter().position(everybody).expect("a room of all")
    }

    /// How many messages bots have to have sent in the end: their introductions and their answers.
    pub fn expected(&self) -> usize {
        let introductions = self.rooms.iter().filter(|room| room.is_direct).count();
        let pings = self.said.iter().filter(|said| said.is_ping);
        introductions + pings.map(|said| self.rooms[said.room].bots.len()).sum::<usize>()
    }

    fn unanswered(&self) -> usize {
        self.expected().saturating_sub(self.fake.said_by_bots())
    }
}
