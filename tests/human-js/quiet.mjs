// Stdout belongs to the protocol: replaces the global console by one which writes to stderr only. The SDK's loggers
// (and the tracing of the Rust crypto) look the console up whenever they log, so this is all it takes.

import { Console } from "node:console";

globalThis.console = new Console(process.stderr, process.stderr);

if (!process.env.HUMAN_DEBUG) {
    for (const level of ["trace", "debug", "log", "info"]) console[level] = () => {};
}
