// Installs package.json's dependencies, whose own are among them, from whatever registry npm is configured for; their
// sha512 makes any mirror safe. A lock file would do the same, but names the registry.
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const folder = fileURLToPath(new URL(".", import.meta.url));
const { dependencies, integrity } = JSON.parse(readFileSync(join(folder, "package.json")));
const work = mkdtempSync(join(tmpdir(), "vmm-node-"));
try {
  for (const [name, version] of Object.entries(dependencies)) {
    const packed = execFileSync("npm", ["pack", "--silent", `${name}@${version}`], { cwd: work, encoding: "utf8" });
    const archive = join(work, packed.trim());
    const found = "sha512-" + createHash("sha512").update(readFileSync(archive)).digest("base64");
    if (found !== integrity[name]) throw new Error(`${name}@${version}: expected ${integrity[name]}, got ${found}`);
    const target = join(folder, "node_modules", name);
    rmSync(target, { recursive: true, force: true });
    mkdirSync(target, { recursive: true });
    execFileSync("tar", ["--extract", "--gzip", "--strip-components=1", "--directory", target, "--file", archive]);
  }
} finally {
  rmSync(work, { recursive: true });
}
