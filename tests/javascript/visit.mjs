// Shows a page until standard input ends: in jsdom, or in the Chromium that is named. `node visit.mjs URL [CHROMIUM]`
const [url, executablePath] = process.argv.slice(2);

async function inChromium() {
  const { chromium } = await import("playwright-core");
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
  const page = await browser.newPage();
  page.on("console", (message) => console.error(message.text()));
  await page.goto(url);
  return () => browser.close();
}

async function inJsdom() {
  const { JSDOM, VirtualConsole } = await import("jsdom");
  const virtualConsole = new VirtualConsole();
  virtualConsole.forwardTo(console);
  const dom = await JSDOM.fromURL(url, { runScripts: "dangerously", resources: "usable", pretendToBeVisual: true, virtualConsole });
  return () => dom.window.close();
}

const leave = await (executablePath ? inChromium() : inJsdom());
process.stdin.resume();
process.stdin.on("end", async () => {
  await leave();
  process.exit(0);
});
