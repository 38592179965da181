// A human sitting at an Element-Web-like client, driven by JSON lines.
//
//   stdin   {"id":1,"method":"login","params":{...}}
//   stdout  {"id":1,"result":{...}}  or  {"id":1,"error":{"message":"...","code":"..."}}
//
// Requests are answered as they finish, so one may wait for a message while another sends it. When stdin closes, the
// program stops. Nothing but answers goes to stdout; logs go to stderr (warnings only, unless HUMAN_DEBUG=1).
//
// The crypto is the one Element Web ships: matrix-js-sdk with the Rust crypto. What mirrors Element around it:
//   session.mjs       login, cross-signing set-up, start of the sync        (Lifecycle, InitialCryptoSetupStore)
//   rooms.mjs         starting a DM, invites, membership                    (createRoom.ts, Rooms.ts)
//   timeline.mjs      sending, reading, undecryptable events, padlocks      (SendMessageComposer, EventTile)
//   trust.mjs         what the user-info panel says of users and devices    (UserInfo)
//   verification.mjs  interactive verification by comparing emoji           (VerificationPanel)

import "./quiet.mjs"; // first, so that the SDK finds the quietened console
import { createInterface } from "node:readline";
import * as rooms from "./rooms.mjs";
import { login } from "./session.mjs";
import * as timeline from "./timeline.mjs";
import * as trust from "./trust.mjs";
import { methods as verification } from "./verification.mjs";

const methods = { ...rooms, ...timeline, ...trust, ...verification };

/** The session after login: `{client, crypto, flows}`; the first argument of every method. */
let session;

async function call(method, params) {
    if (method === "login") {
        if (session) throw new Error(`already logged in as ${session.client.getUserId()}`);
        const { answer, ...opened } = await login(params);
        session = opened;
        return answer;
    }
    if (method === "stop") {
        session?.client.stopClient();
        return {};
    }
    if (method === "logout") {
        // Unlike `stop`, takes the device off the account: nobody encrypts for it, or is warned of it, any more.
        await session?.client.logout(true);
        session = undefined;
        return {};
    }
    if (!Object.hasOwn(methods, method)) throw new Error(`unknown method ${JSON.stringify(method)}`);
    if (!session) throw new Error(`${method}: log in first`);
    return methods[method](session, params);
}

const describeError = (error) => {
    // MatrixError calls its code `errcode`; ours is `code`.
    const code = error?.errcode ?? error?.code;
    return { message: error?.message ?? String(error), ...(code === undefined ? {} : { code: String(code) }) };
};

const reply = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);

async function handle(line) {
    if (!line.trim()) return;
    let request = {};
    try {
        request = JSON.parse(line);
        const result = await call(request.method, request.params ?? {});
        reply({ id: request.id, result: result ?? {} });
    } catch (error) {
        console.debug(error);
        reply({ id: request?.id ?? null, error: describeError(error) });
    }
    if (request?.method === "stop") process.exit(0);
}

// The SDK leaves some of its background work unawaited. Element survives the failure of such work (a lost sync, a
// cancelled verification), and so must the human, rather than take Node's default of dying.
process.on("unhandledRejection", (error) => console.warn("unhandled rejection:", error));

createInterface({ input: process.stdin })
    .on("line", handle)
    .on("close", () => {
        session?.client.stopClient();
        process.exit(0);
    });
