// Writing to and reading from a room's timeline.

import { ClientEvent, EventStatus, EventType, MatrixEventEvent, RoomEvent } from "matrix-js-sdk";
import { EventShieldColour, EventShieldReason } from "matrix-js-sdk/lib/crypto-api/index.js";
import { until } from "./until.mjs";

const TIMELINE_EVENTS = [
    ClientEvent.Sync,
    RoomEvent.Timeline,
    RoomEvent.LocalEchoUpdated,
    MatrixEventEvent.Decrypted,
    MatrixEventEvent.Replaced,
];

function knownRoom(client, roomId) {
    const room = client.getRoom(roomId);
    if (!room) throw new Error(`room ${roomId} is not known to ${client.getUserId()}`);
    return room;
}

/** All events known of the room, oldest first; also those before a gap in the sync. */
const eventsOf = (room) =>
    room
        .getUnfilteredTimelineSet()
        .getTimelines()
        // The live timeline comes first in the list, though it is the newest.
        .toSorted((a, b) => (a === room.getLiveTimeline()) - (b === room.getLiveTimeline()))
        .flatMap((timeline) => timeline.getEvents());

// --- writing

async function send({ client }, roomId, type, content) {
    const room = knownRoom(client, roomId);
    try {
        const { event_id } = await client.sendEvent(roomId, type, content);
        return { event_id };
    } catch (error) {
        // Element offers "retry or delete" and holds the queue back; the human deletes.
        for (const event of room.getPendingEvents()) {
            if (event.status === EventStatus.NOT_SENT) client.cancelPendingEvent(event);
        }
        throw error;
    }
}

export const send_text = (session, { room_id, body }) =>
    send(session, room_id, EventType.RoomMessage, { msgtype: "m.text", body });

export const send_raw = (session, { room_id, type, content }) => send(session, room_id, type, content);

export const react = (session, { room_id, event_id, key }) =>
    send(session, room_id, EventType.Reaction, { "m.relates_to": { rel_type: "m.annotation", event_id, key } });

export async function redact({ client }, { room_id, event_id, reason }) {
    const redaction = await client.redactEvent(room_id, event_id, undefined, { reason });
    return { event_id: redaction.event_id };
}

// --- reading

/**
 * The first message of `sender`, already here or still to come, which matches. It must come after `not_before_event`
 * (exclusive) if that is given. Undecryptable events match nothing, but may become readable while we wait.
 */
export async function wait_message(session, params) {
    const { client } = session;
    const { room_id, sender, body, in_reply_to, not_before_event, timeout_ms } = params;

    const candidates = () => {
        const room = client.getRoom(room_id);
        const events = room ? eventsOf(room) : [];
        if (not_before_event === undefined) return events;
        const index = events.findIndex((event) => event.getId() === not_before_event);
        return index < 0 ? [] : events.slice(index + 1);
    };
    const isReadable = (event) =>
        event.getType() === EventType.RoomMessage && !event.isDecryptionFailure() && !event.isRedacted();
    const matches = (event) =>
        event.getSender() === sender &&
        isReadable(event) &&
        (body === undefined || event.getContent().body === body) &&
        (in_reply_to === undefined || event.replyEventId === in_reply_to);
    const summary = (event) => {
        if (event.isDecryptionFailure()) return `undecryptable (${event.decryptionFailureReason})`;
        return isReadable(event) ? JSON.stringify(event.getContent().body) : event.getType();
    };

    const event = await until(() => candidates().find(matches), {
        on: [client, ...TIMELINE_EVENTS],
        what:
            `a message of ${sender} in ${room_id}` +
            (body === undefined ? "" : ` saying ${JSON.stringify(body)}`) +
            (in_reply_to === undefined ? "" : ` in reply to ${in_reply_to}`) +
            (not_before_event === undefined ? "" : ` after ${not_before_event}`),
        seen: () => {
            const theirs = candidates().filter((event) => event.getSender() === sender && !event.isState());
            return `${theirs.length} events of theirs: ${theirs.map(summary).join(", ")}`;
        },
        timeoutMs: timeout_ms,
    });
    return {
        event_id: event.getId(),
        body: event.getContent().body,
        msgtype: event.getContent().msgtype,
        encrypted: event.isEncrypted(),
        decrypted: event.isEncrypted(),
        shield: await shieldOf(session, event),
    };
}

export function utd_events({ client }, { room_id }) {
    const events = eventsOf(knownRoom(client, room_id))
        .filter((event) => event.isDecryptionFailure())
        .map((event) => ({
            event_id: event.getId(),
            sender: event.getSender(),
            reason: event.decryptionFailureReason,
        }));
    return { events };
}

export function shield(session, { room_id, event_id }) {
    const event = knownRoom(session.client, room_id).findEventById(event_id);
    if (!event) throw new Error(`event ${event_id} is not in the known timeline of ${room_id}`);
    return shieldOf(session, event);
}

/** The padlock which Element's EventTile puts beside an event, computed anew because trust changes. */
async function shieldOf({ client, crypto }, event) {
    if (event.isDecryptionFailure()) {
        throw new Error(`event ${event.getId()} is undecryptable: ${event.decryptionFailureReason}`);
    }
    if (!event.isEncrypted()) {
        // The crypto has no opinion on plain events; the red "not encrypted" is Element's own.
        const odd = !event.isState() && !event.isRedacted() && knownRoom(client, event.getRoomId()).hasEncryptionStateEvent();
        return odd ? { colour: "red", reason: "SENT_IN_CLEAR" } : { colour: "none", reason: null };
    }
    const info = await crypto.getEncryptionInfoForEvent(event);
    if (!info) throw new Error(`event ${event.getId()} has not been decrypted (yet)`);
    return {
        colour: EventShieldColour[info.shieldColour].toLowerCase(),
        reason: info.shieldReason === null ? null : EventShieldReason[info.shieldReason],
    };
}
