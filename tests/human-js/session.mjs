// Login, cross-signing set-up and sync, as Element Web does for a new session.

import { ClientEvent, createClient, PendingEventOrdering } from "matrix-js-sdk";
import { AllDevicesIsolationMode, CryptoEvent, OnlySignedDevicesIsolationMode } from "matrix-js-sdk/lib/crypto-api/index.js";
import { HumanError, until } from "./until.mjs";
import { Flows } from "./verification.mjs";

/**
 * `{homeserver, user_id, password, exclude_insecure?, reset_identity?}` -> `{user_id, device_id, verified}`
 *
 * A user without cross-signing keys gets them. A user who has some already (a second login) is left with an unverified
 * session, as in Element until one verifies it; unless `reset_identity` asks for new keys.
 */
export async function login({ homeserver, user_id, password, exclude_insecure = false, reset_identity = false }) {
    const identifier = { type: "m.id.user", user: user_id };
    const { access_token, device_id, user_id: userId } = await createClient({ baseUrl: homeserver }).loginRequest({
        type: "m.login.password",
        identifier,
        password,
        initial_device_display_name: "greenshield's JavaScript human",
    });

    const client = createClient({
        baseUrl: homeserver,
        accessToken: access_token,
        userId,
        deviceId: device_id,
        verificationMethods: ["m.sas.v1"], // Element also shows QR codes, which a bot has no camera for
        cryptoCallbacks: {},
        timelineSupport: true,
        disableVoip: true,
    });
    client.setMaxListeners(0); // each waiting request listens, so there is no telling how many are right

    await client.initRustCrypto({ useIndexedDB: false });
    const crypto = client.getCrypto();
    // Element's DeviceIsolationModeController, for the setting "exclude insecure devices" (off by default).
    crypto.setDeviceIsolationMode(
        exclude_insecure ? new OnlySignedDevicesIsolationMode() : new AllDevicesIsolationMode(true),
    );
    // Before the first sync, which may bring a request already.
    const flows = new Flows(client);

    try {
        // Element does this after the first sync. But with the sync running, a query of our own keys may overlap the
        // upload of new ones, and the answer with the old ones then undoes our trust in the new.
        const { master_keys } = await client.downloadKeysForUsers([userId]);
        const setUp = reset_identity || !master_keys?.[userId];
        if (setUp) await setUpCrossSigning(client, { identifier, password, reset_identity });
        await startSync(client);
        if (setUp) await untilCrossSigned(client);

        const own = await crypto.getDeviceVerificationStatus(userId, device_id);
        const answer = { user_id: userId, device_id, verified: own?.crossSigningVerified ?? false };
        return { client, crypto, flows, answer };
    } catch (error) {
        client.stopClient();
        throw error;
    }
}

async function startSync(client) {
    await client.startClient({
        lazyLoadMembers: true,
        pendingEventOrdering: PendingEventOrdering.Detached,
        // Element asks for 20 and scrolls back for more. There is nobody to scroll here, so a burst of messages must
        // fit into one sync.
        initialSyncLimit: 100,
    });
    await until(
        () => {
            if (client.isInitialSyncComplete()) return true;
            const error = client.getSyncStateData()?.error;
            if (client.getSyncState() === "ERROR") throw new HumanError(`first sync failed: ${error?.message}`);
        },
        {
            on: [client, ClientEvent.Sync],
            what: "the first sync",
            seen: () => `sync state ${client.getSyncState()}`,
            timeoutMs: 60_000,
        },
    );
}

async function setUpCrossSigning(client, { identifier, password, reset_identity }) {
    const crypto = client.getCrypto();
    await crypto.bootstrapCrossSigning({
        setupNewCrossSigning: reset_identity,
        authUploadDeviceSigningKeys: async (makeRequest) => {
            try {
                // The first upload needs no authentication at homeservers with MSC3967.
                return await makeRequest(null);
            } catch (error) {
                if (!error.data?.flows) throw error;
                const { session } = error.data;
                return await makeRequest({ type: "m.login.password", identifier, password, session });
            }
        },
    });
}

/** The signature on our own device counts once it has come back from the homeserver. */
async function untilCrossSigned(client) {
    const crypto = client.getCrypto();
    const [userId, deviceId] = [client.getUserId(), client.getDeviceId()];
    const status = () => crypto.getDeviceVerificationStatus(userId, deviceId);
    await until(async () => (await status())?.crossSigningVerified || undefined, {
        on: [client, CryptoEvent.KeysChanged, CryptoEvent.DevicesUpdated, ClientEvent.Sync],
        what: "our own session to be cross-signed",
        seen: async () => JSON.stringify(await status()),
    });
}
