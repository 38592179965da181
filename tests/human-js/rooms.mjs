// Rooms and who is in them.

import { ClientEvent, EventType, RoomEvent, RoomMemberEvent, RoomStateEvent } from "matrix-js-sdk";
import { until } from "./until.mjs";

const ROOM_EVENTS = [
    ClientEvent.Room,
    ClientEvent.Sync,
    RoomEvent.MyMembership,
    RoomMemberEvent.Membership,
    RoomStateEvent.Events,
];

const ENCRYPTION = {
    type: EventType.RoomEncryption,
    state_key: "",
    content: { algorithm: "m.megolm.v1.aes-sha2" },
};

/**
 * Waits until the sync shows us in the room, and the crypto has seen that it is encrypted if it is. Sending any earlier
 * would be sending in the clear.
 */
async function untilJoined({ client, crypto }, roomId, mustBeEncrypted) {
    const ready = async () => {
        const room = client.getRoom(roomId);
        if (room?.getMyMembership() !== "join") return undefined;
        const encrypted = mustBeEncrypted || room.hasEncryptionStateEvent();
        return !encrypted || (await crypto.isEncryptionEnabledInRoom(roomId)) ? true : undefined;
    };
    await until(ready, {
        on: [client, ...ROOM_EVENTS],
        what: `${client.getUserId()} to be in ${mustBeEncrypted ? "encrypted " : ""}room ${roomId}`,
        seen: async () =>
            `membership ${client.getRoom(roomId)?.getMyMembership()}, ` +
            `encrypted: ${await crypto.isEncryptionEnabledInRoom(roomId)}`,
    });
}

/** What Element's createRoom() sends for a DM (its default is encrypted), and its m.direct book-keeping. */
export async function create_dm(session, { user_id, encrypted = true }) {
    const { client } = session;
    const { room_id } = await client.createRoom({
        preset: "trusted_private_chat",
        visibility: "private",
        is_direct: true,
        invite: [user_id],
        initial_state: encrypted ? [ENCRYPTION] : [],
    });
    const direct = client.getAccountData(EventType.Direct)?.getContent() ?? {};
    await client.setAccountData(EventType.Direct, { ...direct, [user_id]: [...(direct[user_id] ?? []), room_id] });
    await untilJoined(session, room_id, encrypted);
    return { room_id };
}

export async function create_room(session, { name, encrypted = true, invite = [], history_visibility }) {
    const { room_id } = await session.client.createRoom({
        preset: "private_chat",
        visibility: "private",
        name,
        invite,
        initial_state: [
            ...(encrypted ? [ENCRYPTION] : []),
            ...(history_visibility
                ? [{ type: EventType.RoomHistoryVisibility, state_key: "", content: { history_visibility } }]
                : []),
        ],
    });
    await untilJoined(session, room_id, encrypted);
    return { room_id };
}

export async function invite({ client }, { room_id, user_id }) {
    await client.invite(room_id, user_id);
}

export async function join(session, { room_id }) {
    await session.client.joinRoom(room_id);
    await untilJoined(session, room_id, false);
}

export async function leave({ client }, { room_id }) {
    await client.leave(room_id);
}

export async function wait_invite({ client }, { from, timeout_ms }) {
    const me = client.getUserId();
    const invites = () =>
        client
            .getRooms()
            .filter((room) => room.getMyMembership() === "invite")
            .map((room) => ({ room, event: room.getMember(me)?.events.member }))
            .filter(({ event }) => event);
    const { room, event } = await until(
        () => invites().find(({ event }) => from === undefined || event.getSender() === from),
        {
            on: [client, ...ROOM_EVENTS],
            what: `an invite from ${from ?? "anybody"}`,
            seen: () => `invites from [${invites().map(({ event }) => event.getSender())}]`,
            timeoutMs: timeout_ms,
        },
    );
    return {
        room_id: room.roomId,
        is_direct: event.getContent().is_direct === true,
        inviter: event.getSender(),
        encrypted: room.hasEncryptionStateEvent(),
    };
}

export async function wait_member({ client }, { room_id, user_id, membership, timeout_ms }) {
    // Lazy loading leaves silent members out until asked for, as Element's member list does.
    await client.getRoom(room_id)?.loadMembersIfNeeded();
    const current = () => client.getRoom(room_id)?.getMember(user_id)?.membership;
    await until(() => current() === membership || undefined, {
        on: [client, ...ROOM_EVENTS],
        what: `membership ${membership} of ${user_id} in ${room_id}`,
        seen: () => `membership ${current()}`,
        timeoutMs: timeout_ms,
    });
}
