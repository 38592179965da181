// Interactive verification by emoji, as Element's VerificationPanel does it.

import { UserId } from "@matrix-org/matrix-sdk-crypto-wasm";
import { ClientEvent } from "matrix-js-sdk";
import {
    CryptoEvent,
    VerificationPhase,
    VerificationRequestEvent,
    VerifierEvent,
} from "matrix-js-sdk/lib/crypto-api/index.js";
import { EventEmitter } from "node:events";
import { ensureKeys } from "./keys.mjs";
import { HumanError, until } from "./until.mjs";

/**
 * One verification. Keeps the request alive: the SDK itself holds it by a weak reference only, and the Rust side would
 * have nobody to tell once it were collected.
 */
class Flow extends EventEmitter {
    handedOut = false;

    constructor(id, request) {
        super();
        this.setMaxListeners(0);
        this.id = id;
        this.request = request;
        request.on(VerificationRequestEvent.Change, () => this.#onChange());
        this.#onChange();
    }

    get phase() {
        try {
            return this.request.phase;
        } catch (error) {
            // Rust tells of a started SAS asynchronously. In between the SDK has no verifier yet, and throws.
            if (/no verifier/.test(error.message)) return VerificationPhase.Ready;
            throw error;
        }
    }

    /** `{sas, confirm, mismatch}` once there are emoji to compare. They remain available afterwards. */
    get sas() {
        return this.verifier?.getShowSasCallbacks() ?? undefined;
    }

    #onChange() {
        if (!this.verifier && this.phase === VerificationPhase.Started) {
            this.verifier = this.request.verifier;
            // The request relays its verifier's changes, but the one which brings the emoji is sent before they are
            // there to be read.
            this.verifier.on(VerifierEvent.ShowSas, () => this.emit("change"));
            // Whoever started it, VerificationPanel goes along at once: this accepts the other side's start. It fails
            // when the flow is cancelled, which we learn from the phase.
            this.verifier.verify().catch((error) => console.info(`verification ${this.id}: ${error.message}`));
        }
        this.emit("change");
    }

    describe() {
        const phase = VerificationPhase[this.phase].toLowerCase();
        const emoji = this.sas?.sas.emoji?.map(([symbol, name]) => ({ symbol, name }));
        const decimals = this.sas?.sas.decimal;
        return {
            phase,
            ...(emoji && { emoji }),
            ...(decimals && { decimals }),
            ...(phase === "cancelled" && {
                cancel_code: this.request.cancellationCode,
                cancelled_by: this.request.cancellingUserId,
            }),
        };
    }

    /** Waits for `goal`; fails at once if the flow ends without reaching it. */
    wait(goal, timeoutMs) {
        const reached = GOALS[goal];
        if (!reached) throw new Error(`no such phase: ${goal}; there are ${Object.keys(GOALS).join(", ")}`);
        const check = () => {
            if (reached(this)) return this.describe();
            const { phase, cancel_code, cancelled_by } = this.describe();
            if (phase === "cancelled") {
                const message = `waited for verification ${this.id} to be ${goal}, but ${cancelled_by} cancelled it: ${cancel_code}`;
                throw new HumanError(message, cancel_code);
            }
            if (phase === "done") throw new HumanError(`waited for verification ${this.id} to be ${goal}, but it is done`, "done");
        };
        return until(check, {
            on: [this, "change"],
            what: `verification ${this.id} with ${this.request.otherUserId} to be ${goal}`,
            seen: () => `phase ${this.describe().phase}, ${this.sas ? "with" : "no"} emoji to compare`,
            timeoutMs,
        });
    }
}

const GOALS = {
    ready: ({ phase }) => [VerificationPhase.Ready, VerificationPhase.Started, VerificationPhase.Done].includes(phase),
    sas: ({ sas, phase }) => sas !== undefined && phase !== VerificationPhase.Cancelled,
    done: ({ phase }) => phase === VerificationPhase.Done,
    cancelled: ({ phase }) => phase === VerificationPhase.Cancelled,
    finished: ({ phase }) => [VerificationPhase.Done, VerificationPhase.Cancelled].includes(phase),
};

/** The verifications of this session, by the handle given to each. */
export class Flows extends EventEmitter {
    #flows = new Map();

    constructor(client) {
        super();
        this.setMaxListeners(0);
        client.on(CryptoEvent.VerificationRequestReceived, (request) => {
            this.add(request);
            this.emit("incoming");
        });
    }

    add(request) {
        const flow = new Flow(`flow-${this.#flows.size + 1}`, request);
        this.#flows.set(flow.id, flow);
        return flow;
    }

    get(id) {
        const flow = this.#flows.get(id);
        if (!flow) throw new Error(`no verification ${JSON.stringify(id)}; there are [${[...this.#flows.keys()]}]`);
        return flow;
    }

    incoming() {
        // A new session's first sync also brings requests of the last ten minutes, which are over.
        const isWaiting = (flow) => !flow.handedOut && !flow.request.initiatedByMe && flow.request.pending;
        return [...this.#flows.values()].filter(isWaiting);
    }
}

const handle = (flow) => {
    flow.handedOut = true;
    return { flow_id: flow.id, transaction_id: flow.request.transactionId };
};

async function startSas(flow) {
    // If the other side was faster, going along (see Flow) is all there is to do.
    if (flow.phase === VerificationPhase.Started) return;
    await flow.request.startVerification("m.sas.v1");
}

function sasOf(flow) {
    const { phase } = flow.describe();
    if (phase !== "started") throw new HumanError(`verification ${flow.id} is ${phase}`, flow.request.cancellationCode ?? undefined);
    if (!flow.sas) throw new Error(`verification ${flow.id} has no emoji to compare yet`);
    return flow.sas;
}

/**
 * Waits for the crypto to have forgotten the finished verifications with a user.
 *
 * It does so with every sync, and takes a request made before then as a second one at a time: it cancels both. People
 * are never that fast.
 */
async function untilForgotten({ client, crypto }, userId) {
    const finished = () =>
        crypto
            .getOlmMachineOrThrow()
            .getVerificationRequests(new UserId(userId))
            .filter((request) => request.isDone());
    if (finished().length === 0) return;
    // An idle sync may take 30 seconds to return; news of our own make it return now.
    await client.setAccountData("greenshield.human.nudge", { ts: Date.now() });
    await until(() => finished().length === 0 || undefined, {
        on: [client, ClientEvent.Sync],
        what: `the last verification with ${userId} to be put away`,
        seen: () => `still there: ${finished().map(({ flowId }) => flowId)}`,
    });
}

export const methods = {
    async request_verification(session, { user_id, via, room_id, device_ids }) {
        const { crypto, flows } = session;
        const known = await ensureKeys(crypto, user_id);
        await untilForgotten(session, user_id);
        switch (via) {
            case "room":
                return handle(flows.add(await crypto.requestVerificationDM(user_id, room_id)));
            case "to_device": {
                const deviceId = device_ids?.[0] ?? known.keys().next().value;
                if (!deviceId) throw new Error(`no device of ${user_id} is known`);
                return handle(flows.add(await crypto.requestDeviceVerification(user_id, deviceId)));
            }
            default:
                throw new Error(`via must be "room" or "to_device", not ${JSON.stringify(via)}`);
        }
    },

    /** Hands each incoming request out once. */
    async wait_incoming_verification({ flows }, { from, timeout_ms }) {
        const mine = ({ request }) => from === undefined || request.otherUserId === from;
        const flow = await until(() => flows.incoming().find(mine), {
            on: [flows, "incoming"],
            what: `a verification request from ${from ?? "anybody"}`,
            seen: () => `requests from [${flows.incoming().map(({ request }) => request.otherUserId)}]`,
            timeoutMs: timeout_ms,
        });
        return { ...handle(flow), via: flow.request.roomId ? "room" : "to_device" };
    },

    async accept_verification({ flows }, { flow_id }) {
        await flows.get(flow_id).request.accept();
    },

    async wait_verification({ flows }, { flow_id, phase, timeout_ms }) {
        return flows.get(flow_id).wait(phase, timeout_ms);
    },

    async start_sas({ flows }, { flow_id }) {
        await startSas(flows.get(flow_id));
    },

    async confirm_sas({ flows }, { flow_id }) {
        await sasOf(flows.get(flow_id)).confirm();
    },

    async mismatch_sas({ flows }, { flow_id }) {
        sasOf(flows.get(flow_id)).mismatch();
    },

    async cancel_verification({ flows }, { flow_id }) {
        await flows.get(flow_id).request.cancel();
    },

    /** Up to the emoji, which it returns for comparing; confirming them is the caller's. */
    async verify_full({ flows }, { flow_id, timeout_ms = 30_000 }) {
        const flow = flows.get(flow_id);
        const deadline = Date.now() + timeout_ms;
        await flow.wait("ready", timeout_ms);
        await startSas(flow);
        const { emoji, decimals } = await flow.wait("sas", Math.max(0, deadline - Date.now()));
        return { emoji, decimals };
    },
};
