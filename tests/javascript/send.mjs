// Sends events from a Node.js program. `node send.mjs rudder|segment URL WRITE_KEY gzip|plain`
const [sdk, url, writeKey, packing] = process.argv.slice(2);
const failed = [];

async function client() {
  if (sdk === "segment") {
    const { Analytics } = await import("@segment/analytics-node");
    const analytics = new Analytics({ host: url, writeKey, flushAt: 10, flushInterval: 100, maxRetries: 0 });
    analytics.on("error", (error) => failed.push(error));
    return [analytics, () => analytics.closeAndFlush()];
  }
  const { default: Analytics } = await import("@rudderstack/rudder-sdk-node");
  const analytics = new Analytics(writeKey, { dataPlaneUrl: url, flushAt: 10, gzip: packing === "gzip" });
  return [analytics, () => analytics.flush()];
}

const [analytics, end] = await client();
for (let number = 0; number < 20; number++) {
  analytics.track({ userId: "user-1", event: "Order completed", properties: { number, price: 1.5, note: "Zé" } });
}
analytics.identify({ userId: "user-1", traits: { name: "Zé" } });
analytics.page({ userId: "user-1", category: "docs", name: "Home" });
analytics.screen({ userId: "user-1", category: "docs", name: "Start" });
analytics.group({ userId: "user-1", groupId: "group-1", traits: { seats: 3 } });
analytics.alias({ userId: "user-2", previousId: "user-1" });
await end();
if (failed.length) throw failed[0];
