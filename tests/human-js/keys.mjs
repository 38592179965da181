// Other users' device and cross-signing keys.

import { UserId } from "@matrix-org/matrix-sdk-crypto-wasm";

/**
 * Makes sure the crypto knows the user's keys, and returns their devices: a map from device ID to `Device`.
 *
 * The SDK keeps the keys of those it shares an encrypted room with, and news of them come by sync; there we rely on
 * that, exactly as Element does, so that a homeserver or bot which fails to announce a change is found out. Of a
 * stranger the SDK's public interface only ever shows the devices without storing them, which is no use for
 * verification; so ask for their keys the way the SDK itself does when a stranger requests verification.
 */
export async function ensureKeys(crypto, userId) {
    const known = (await crypto.getUserDeviceInfo([userId])).get(userId);
    const status = await crypto.getUserVerificationStatus(userId);
    if (known?.size && status.known) return known;

    await crypto.outgoingRequestProcessor.makeOutgoingRequest(
        crypto.getOlmMachineOrThrow().queryKeysForUsers([new UserId(userId)]),
    );
    return crypto.getUserDevices(userId);
}
