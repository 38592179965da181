//! What a bot's store remembers of what it has read and written.
//!
//! The machine asks for the same few rows with every message: the devices and the identity of whoever
//! writes, the room key, its own identity. As long as the lease holds nobody else writes a bot's rows,
//! so what was read once is true until this very store changes it. The cache lives and dies with the
//! machine it serves, is bounded, and is thrown away with it when a write fails.
//!
//! What the machine itself keeps of what goes through here is not bounded: an Olm session with every
//! device that it has written to, and for every room whom its key was given to. That is counted here,
//! so that whoever keeps machines knows what they take ([`Cache::bytes`]).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, SystemTime},
};

use hashlink::LruCache;
use matrix_sdk_crypto::{
    DeviceData,
    olm::{InboundGroupSession, OutboundGroupSession, PickledOutboundGroupSession},
};
use ruma::{OwnedDeviceId, OwnedRoomId, OwnedUserId, RoomId, SecondsSinceUnixEpoch, UserId};

/// How many users' devices and identities are kept.
const USERS: usize = 128;
/// How many room keys are kept.
const ROOM_KEYS: usize = 64;
/// A session is not used up to its very last second: the machine stops at it.
const MARGIN: Duration = Duration::from_secs(60);
/// matrix-sdk-crypto's own bound of a rotation.
const MIN_PERIOD: Duration = Duration::from_secs(3600);

/// About what a device, an identity and a room key take in memory.
const DEVICE_BYTES: usize = 2048;
const IDENTITY_BYTES: usize = 2048;
const ROOM_KEY_BYTES: usize = 1024;

// Measured as what the resident memory of a process grew by, divided by 20,000: so many sessions made
// from one pickle, in a map as the machine's own and under the names that we keep; entries of users with
// one device and with two; sessions to send with.
/// An Olm session, with the copy of our device's keys that each has.
const SESSION_BYTES: usize = 9 * 1024;
/// A session that the bot sends with, and what else is kept of its room.
const OUTBOUND_BYTES: usize = 2048;
/// That such a session was given to a user's devices: a node of a tree, which has room for eleven.
const GIVEN_BYTES: usize = 1024;
/// By its length, a message that is yet to give it to a device.
const TO_GIVE_BYTES: usize = 2048;

/// See the module.
pub(super) struct Cache {
    devices: LruCache<OwnedUserId, HashMap<OwnedDeviceId, DeviceData>>,
    /// As JSON: a `UserIdentityData` shares its state with its clones, and the machine compares what
    /// was stored with what it changed.
    identities: LruCache<OwnedUserId, Option<Vec<u8>>>,
    inbound: LruCache<(OwnedRoomId, String), InboundGroupSession>,
    outbound: HashMap<OwnedRoomId, Outbound>,
    /// Of which senders the machine has the Olm sessions.
    senders: HashSet<String>,
    /// Which Olm sessions it has.
    sessions: HashSet<String>,
    no_requests: bool,
}

/// The session that a bot sends with in a room, which is the machine's own, and when it is used up.
struct Outbound {
    session: OutboundGroupSession,
    expires_at: SystemTime,
    bytes: usize,
}

/// What a pickle says of the session that it is of.
pub(super) struct Weighed {
    created_at: SecondsSinceUnixEpoch,
    /// About what the session takes, with those whom it was given to, and is yet to be given.
    bytes: usize,
}

impl From<&PickledOutboundGroupSession> for Weighed {
    fn from(pickle: &PickledOutboundGroupSession) -> Self {
        let requests = || pickle.requests.values().map(|(_, to)| to);
        let to_give: usize = requests().flat_map(BTreeMap::values).map(BTreeMap::len).sum();
        let entries = pickle.shared_with_set.len() + requests().map(BTreeMap::len).sum::<usize>();
        let bytes = OUTBOUND_BYTES + entries * GIVEN_BYTES + to_give * TO_GIVE_BYTES;
        Self { created_at: pickle.creation_time, bytes }
    }
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            devices: LruCache::new(USERS),
            identities: LruCache::new(USERS),
            inbound: LruCache::new(ROOM_KEYS),
            outbound: HashMap::new(),
            senders: HashSet::new(),
            sessions: HashSet::new(),
            no_requests: false,
        }
    }
}

impl Cache {
    /// All devices of a user, if they are here.
    pub(super) fn devices(
        &mut self,
        user_id: &UserId,
    ) -> Option<HashMap<OwnedDeviceId, DeviceData>> {
        self.devices.get(user_id).cloned()
    }

    /// Whether a user's devices and identity are here.
    pub(super) fn has_user(&self, user_id: &str) -> bool {
        self.devices.contains_key(user_id) && self.identities.contains_key(user_id)
    }

    /// Whether a room's session is here.
    pub(super) fn has_outbound(&self, room_id: &str) -> bool {
        self.outbound.keys().any(|room| room == room_id)
    }

    /// Whether the machine has the Olm sessions with a sender's device.
    pub(super) fn has_sessions(&self, sender_key: &str) -> bool {
        self.senders.contains(sender_key)
    }

    /// Notes that it has.
    pub(super) fn note_sender(&mut self, sender_key: &str) {
        if !self.has_sessions(sender_key) {
            self.senders.insert(sender_key.to_owned());
        }
    }

    /// Notes that it has this session.
    pub(super) fn note_session(&mut self, session_id: &str) {
        if !self.sessions.contains(session_id) {
            self.sessions.insert(session_id.to_owned());
        }
    }

    /// Notes that it has no sessions any more, and reads those that it needs again.
    pub(super) fn forget_sessions(&mut self) {
        self.senders.clear();
        self.sessions.clear();
    }

    /// Whether a room key is here.
    pub(super) fn has_inbound(&self, key: &(String, String)) -> bool {
        self.inbound.iter().any(|((room, session), _)| *room == key.0 && *session == key.1)
    }

    /// Keeps all devices of a user.
    pub(super) fn keep_devices(
        &mut self,
        user_id: &UserId,
        devices: HashMap<OwnedDeviceId, DeviceData>,
    ) {
        self.devices.insert(user_id.to_owned(), devices);
    }

    /// Notes that a device was written or deleted.
    pub(super) fn change_device(&mut self, device: &DeviceData, deleted: bool) {
        let Some(devices) = self.devices.get_mut(device.user_id()) else { return };
        if deleted {
            devices.remove(device.device_id());
        } else {
            devices.insert(device.device_id().to_owned(), device.clone());
        }
    }

    /// The identity of a user as JSON, if it is known here whether there is one.
    #[expect(clippy::option_option, reason = "whether it is known, and whether there is one")]
    pub(super) fn identity(&mut self, user_id: &UserId) -> Option<Option<Vec<u8>>> {
        self.identities.get(user_id).cloned()
    }

    /// Keeps what is known of a user's identity.
    pub(super) fn keep_identity(&mut self, user_id: &UserId, json: Option<Vec<u8>>) {
        self.identities.insert(user_id.to_owned(), json);
    }

    /// A room key, if it is here.
    pub(super) fn inbound(
        &mut self,
        room_id: &RoomId,
        session_id: &str,
    ) -> Option<InboundGroupSession> {
        self.inbound.get(&(room_id.to_owned(), session_id.to_owned())).cloned()
    }

    /// Keeps room keys.
    pub(super) fn keep_inbound<'a>(
        &mut self,
        sessions: impl Iterator<Item = &'a InboundGroupSession>,
    ) {
        for session in sessions {
            let key = (session.room_id().to_owned(), session.session_id().to_owned());
            self.inbound.insert(key, session.clone());
        }
    }

    /// Forgets all room keys: columns beside them changed.
    pub(super) fn forget_inbound(&mut self) {
        self.inbound.clear();
    }

    /// Keeps the session that the machine sends with in a room.
    pub(super) fn keep_outbound(
        &mut self,
        session: &OutboundGroupSession,
        Weighed { created_at, bytes }: Weighed,
    ) {
        let created_at = SystemTime::UNIX_EPOCH + Duration::from_secs(created_at.get().into());
        let expires_at = created_at + session.settings().rotation_period.max(MIN_PERIOD) - MARGIN;
        let outbound = Outbound { session: session.clone(), expires_at, bytes };
        self.outbound.insert(session.room_id().to_owned(), outbound);
    }

    /// Notes how much the session takes by now.
    pub(super) fn weigh_outbound(&mut self, session: &PickledOutboundGroupSession) {
        if let Some(known) = self.outbound.get_mut(&session.room_id) {
            known.bytes = Weighed::from(session).bytes;
        }
    }

    /// Whether this very session is here.
    pub(super) fn knows_outbound(&self, session: &OutboundGroupSession) -> bool {
        let known = self.outbound.get(session.room_id());
        known.is_some_and(|known| known.session.session_id() == session.session_id())
    }

    /// Whether a message can be encrypted for this room without looking at the session first.
    pub(super) fn may_encrypt(&self, room_id: &RoomId, now: SystemTime) -> bool {
        self.outbound.get(room_id).is_some_and(|Outbound { session, expires_at, .. }| {
            session.shared() && !session.invalidated() && !session.expired() && now < *expires_at
        })
    }

    /// Whether it is known that the bot has asked nobody for anything.
    pub(super) const fn no_requests(&self) -> bool {
        self.no_requests
    }

    /// Notes whether it has.
    pub(super) const fn note_requests(&mut self, any: bool) {
        self.no_requests = !any;
    }

    /// About how much memory this takes, and what the machine keeps of it.
    pub(super) fn bytes(&self) -> usize {
        let devices: usize = self.devices.iter().map(|(_, devices)| devices.len()).sum();
        devices * DEVICE_BYTES
            + self.identities.len() * IDENTITY_BYTES
            + self.inbound.len() * ROOM_KEY_BYTES
            + self.sessions.len() * SESSION_BYTES
            + self.outbound.values().map(|outbound| outbound.bytes).sum::<usize>()
    }
}
