// Drives a Chromium with Playwright: one command per line on standard input, one answer per line on standard output. Times are taken here, so the way to this program costs nothing.
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';

const [modules, executablePath, root] = process.argv.slice(2);
const { chromium } = createRequire(modules)('playwright-core');
const args = ['--disable-gpu', '--disable-dev-shm-usage'];
const browser = await chromium.launch({ executablePath, args, chromiumSandbox: root !== 'root' });
const page = await browser.newPage({ viewport: { width: 1280, height: 800 } });

let turn = 0;
const commands = {
  open: ({ url }) => page.goto(url).then(() => 0),
  click: () => page.click('#button').then(() => 0),
  fill: () => page.fill('#field', `value ${turn++}`).then(() => 0),
  evaluate: () => page.evaluate('1 + 1').then(() => 0),
  snapshot: async () => (await page.locator('body').ariaSnapshot()).length,
  loop: async ({ pairs }) => {
    for (let n = 0; n < pairs; n++) {
      await page.click('#button');
      await page.fill('#field', `value ${turn++}`);
    }
    return 0;
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  const began = performance.now();
  const bytes = await commands[command.do](command);
  console.log(JSON.stringify({ ms: performance.now() - began, bytes }));
}
await browser.close();
