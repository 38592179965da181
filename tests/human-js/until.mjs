// Waiting for something to become true, by events rather than by sleeping.

export class HumanError extends Error {
    constructor(message, code) {
        super(message);
        this.code = code;
    }
}

/**
 * Resolves with what `check` returns once that is not undefined.
 *
 * `check` (sync or async) runs at once, after the listeners are in place, so that nothing slips in between; and then
 * after every event. A throwing check ends the wait.
 *
 * @param check what to look at
 * @param on `[emitter, ...eventNames]` after which looking again may be worthwhile
 * @param what the awaited, for the error message
 * @param seen returns what there is instead, for the error message
 */
export async function until(check, { on: [emitter, ...events], what, seen, timeoutMs = 30_000 }) {
    const { promise, resolve, reject } = Promise.withResolvers();

    let looking = false;
    let lookAgain = false;
    const look = async () => {
        lookAgain = true;
        if (looking) return; // an event during an async check must not be lost, nor start a second check
        looking = true;
        try {
            while (lookAgain) {
                lookAgain = false;
                const found = await check();
                if (found !== undefined) return resolve(found);
            }
        } catch (error) {
            reject(error);
        } finally {
            looking = false;
        }
    };

    const timer = setTimeout(async () => {
        const instead = await Promise.resolve().then(seen).catch((error) => `(cannot tell: ${error.message})`);
        reject(new HumanError(`waited ${timeoutMs} ms for ${what}; instead: ${instead}`, "timeout"));
    }, timeoutMs);
    for (const event of events) emitter.on(event, look);
    try {
        look();
        return await promise;
    } finally {
        clearTimeout(timer);
        for (const event of events) emitter.off(event, look);
    }
}
