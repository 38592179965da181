// What Element's user-info panel tells of a user: the identity, the devices, and whether they are trusted.

import { ClientEvent } from "matrix-js-sdk";
import { CryptoEvent } from "matrix-js-sdk/lib/crypto-api/index.js";
import { ensureKeys } from "./keys.mjs";
import { until } from "./until.mjs";

const ASK_ANEW_MS = 10_000;

export async function user_trust({ crypto }, { user_id }) {
    await ensureKeys(crypto, user_id);
    const status = await crypto.getUserVerificationStatus(user_id);
    const keys = await crypto.getUserCrossSigningKeys(user_id);
    const [msk] = Object.values(keys?.master_key.keys ?? {});
    return {
        verified: status.isCrossSigningVerified(),
        has_identity: status.known,
        needs_approval: status.needsUserApproval,
        was_verified: status.wasCrossSigningVerified(),
        ...(msk ? { msk } : {}),
    };
}

/**
 * Waits for the user to be verified (or not to be), and returns their `user_trust`.
 *
 * Needed after a verification: it is "done" when the messages have been exchanged, but the user counts as verified only
 * once our signature has been uploaded, announced by the sync and queried back. Element's panel, too, follows this event.
 *
 * A homeserver can lose the announcement, as it can lose any change of devices, and a query that was under way meanwhile
 * brings the state before: a human would reload. So now and then we ask for the keys anew.
 */
export async function wait_user_trust(session, { user_id, verified = true, timeout_ms }) {
    const askAnew = async () => {
        await session.crypto.markAllTrackedUsersAsDirty();
        session.crypto.onSyncCompleted({});
    };
    const asking = setInterval(() => askAnew().catch((error) => console.error(`cannot ask: ${error}`)), ASK_ANEW_MS);
    return until(
        async () => {
            const trust = await user_trust(session, { user_id });
            return trust.verified === verified ? trust : undefined;
        },
        {
            on: [session.client, CryptoEvent.UserTrustStatusChanged, CryptoEvent.DevicesUpdated, ClientEvent.Sync],
            what: `${user_id} to be ${verified ? "" : "un"}verified`,
            seen: async () => JSON.stringify(await user_trust(session, { user_id })),
            timeoutMs: timeout_ms,
        },
    ).finally(() => clearInterval(asking));
}

export async function devices({ crypto }, { user_id }) {
    const known = await ensureKeys(crypto, user_id);
    const describe = async (device) => {
        const status = await crypto.getDeviceVerificationStatus(user_id, device.deviceId);
        return {
            device_id: device.deviceId,
            ed25519: device.getFingerprint(),
            signed_by_owner: status?.signedByOwner ?? false,
            cross_signing_verified: status?.crossSigningVerified ?? false,
        };
    };
    return { devices: await Promise.all([...known.values()].map(describe)) };
}
