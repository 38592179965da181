//! What is missing, or there twice, after a storm. Each line of the answer is one loss.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Result, ensure};

use super::village::{Folk, Room, Said, Village};
use crate::support::{fake_homeserver::Person, report};

/// Row in hand: what was tried, and how often.
pub type Tally = BTreeMap<String, u64>;

impl Village {
    /// Writes the rows of a storm that is over, and fails if anything was lost.
    pub async fn close(&self, area: &str, tried: &Tally) -> Result<()> {
        self.caught_up().await?;
        let losses = self.losses().await?;
        let ratchets = self.scene.fake.ratchets()?;
        let note = format!(
            "{} messages in and {} out compared one by one, in {} rooms that bots were invited into meanwhile, too; {} Megolm and {} Olm positions used once",
            self.folk.said.len(),
            self.folk.expected(),
            self.folk.invitations,
            ratchets.megolm,
            ratchets.olm,
        );
        for (what, times) in tried {
            report::row(area, what, *times, losses.len() as u64, &note);
        }
        ensure!(
            losses.is_empty(),
            "{} losses: {:#?}",
            losses.len(),
            &losses[..losses.len().min(20)]
        );
        Ok(())
    }

    /// Everything that is not as it must be.
    pub async fn losses(&self) -> Result<Vec<String>> {
        let mut losses = self.not_logged_once().await?;
        losses.extend(self.outbox().await?);
        losses.extend(self.identities());
        losses.extend(self.scene.fake.ratchets()?.used_twice);
        for room in 0..self.folk.rooms.len() {
            losses.extend(self.not_answered_once(room).await?);
        }
        Ok(losses)
    }

    /// Each message is in the log of each bot of its room once, decrypted.
    async fn not_logged_once(&self) -> Result<Vec<String>> {
        let rows: Vec<(String, String, i64, String)> = sqlx::query_as(
            "SELECT event_id, user_id, COUNT(*), MIN(decryption)
            FROM event_log JOIN events USING (event_seq) JOIN bots USING (bot_id)
            GROUP BY event_id, user_id",
        )
        .fetch_all(&self.scene.sql)
        .await?;
        let logged: HashMap<_, _> =
            rows.into_iter().map(|(event, bot, count, how)| ((event, bot), (count, how))).collect();
        let mut losses = Vec::new();
        for Said { event_id, room, .. } in &self.folk.said {
            for bot in self.folk.bots_of(&self.folk.rooms[*room]) {
                match logged.get(&(event_id.clone(), bot.to_owned())) {
                    Some((1, how)) if how != "failed" => {}
                    other => losses.push(format!("{event_id} of {bot} is logged as {other:?}")),
                }
            }
        }
        let gaps: Vec<String> = sqlx::query_scalar(
            "SELECT user_id FROM bots JOIN event_log USING (bot_id)
            GROUP BY user_id HAVING COUNT(*) <> MAX(update_id)",
        )
        .fetch_all(&self.scene.sql)
        .await?;
        losses.extend(gaps.into_iter().map(|bot| format!("the log of {bot} has gaps")));
        Ok(losses)
    }

    /// Each message of the outbox is sent, and is an event of its own in its room.
    async fn outbox(&self) -> Result<Vec<String>> {
        let rows: Vec<(i64, String, String, Option<String>)> =
            sqlx::query_as("SELECT send_id, state, room_id, event_id FROM outbox")
                .fetch_all(&self.scene.sql)
                .await?;
        let mut timelines: HashMap<String, BTreeSet<String>> = HashMap::new();
        let mut losses = Vec::new();
        for (id, state, room, event) in rows {
            let timeline = timelines.entry(room.clone()).or_insert_with(|| {
                let events = self.scene.fake.timeline(&room).into_iter();
                events.filter_map(|event| Some(event["event_id"].as_str()?.to_owned())).collect()
            });
            // Taken out, so that two rows of one event show.
            if state != "sent" || !event.as_ref().is_some_and(|event| timeline.remove(event)) {
                losses.push(format!("the message {id} in {room} is {state}, as {event:?}"));
            }
        }
        Ok(losses)
    }

    /// One device and one identity for life, and never unsigned.
    fn identities(&self) -> Vec<String> {
        let fake = &self.scene.fake;
        let mut losses: Vec<String> = fake.unsigned();
        for bot in &self.folk.bots {
            let (devices, masters) = (fake.devices(&bot.user_id), fake.masters(&bot.user_id));
            if devices != [bot.device_id.clone()] || masters.len() != 1 {
                losses.push(format!("{} has {devices:?} and {masters:?}", bot.user_id));
            }
        }
        losses
    }

    /// Each `!ping` has one answer of each bot; bots have said nothing else; and everybody reads all of
    /// it, with no mark beside it.
    async fn not_answered_once(&self, number: usize) -> Result<Vec<String>> {
        let room = &self.folk.rooms[number];
        let mut losses = Vec::new();
        let mut expected = BTreeMap::new();
        for said in self.folk.said.iter().filter(|said| said.room == number && said.is_ping) {
            for bot in self.folk.bots_of(room) {
                expected.insert((Some(said.event_id.clone()), bot.to_owned()), 1);
            }
        }
        if room.is_direct {
            expected.extend(self.folk.bots_of(room).map(|bot| ((None, bot.to_owned()), 1)));
        }
        for reader in self.folk.readers(room) {
            let mut found = BTreeMap::new();
            let (read, unreadable) = reader.read_all(&room.id).await?;
            let of_bots = |what: &String| self.folk.bots_of(room).any(|bot| what.contains(bot));
            for what in unreadable.iter().filter(|what| of_bots(what)) {
                losses.push(format!("{} on {}: {what}", reader.user_id, reader.device_id));
            }
            for read in read {
                if !self.folk.bots_of(room).any(|bot| bot == read.sender) {
                    continue;
                }
                if read.shield != "None" {
                    losses.push(format!("{read:?} has a mark"));
                }
                *found.entry((read.answers, read.sender)).or_insert(0) += 1;
            }
            let who = format!("{} on {} in {}", reader.user_id, reader.device_id, room.id);
            for answer in expected.keys().filter(|answer| !found.contains_key(*answer)) {
                losses.push(format!("{who} cannot read {answer:?}"));
            }
            for (answer, count) in
                found.iter().filter(|(answer, n)| expected.get(*answer) != Some(n))
            {
                losses.push(format!("{who} reads {answer:?} {count} times"));
            }
            let there: usize = self
                .folk
                .bots_of(room)
                .map(|bot| self.scene.fake.said_by(bot, &room.id).len())
                .sum();
            if there != expected.len() {
                losses.push(format!(
                    "bots said {there} things in {}, not {}",
                    room.id,
                    expected.len()
                ));
            }
        }
        Ok(losses)
    }
}

impl Folk {
    pub fn bots_of<'a>(&'a self, room: &'a Room) -> impl Iterator<Item = &'a str> {
        room.bots.iter().map(|bot| self.bots[*bot].user_id.as_str())
    }

    fn readers<'a>(&'a self, room: &'a Room) -> impl Iterator<Item = &'a Person> {
        let phone = room.people.contains(&0).then_some(&self.phone);
        room.people.iter().map(|person| &self.people[*person]).chain(phone)
    }
}
