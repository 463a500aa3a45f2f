// Runs a program on the MicroPython of the npm package (WebAssembly: words of 32 bits) with a directory as its file system.
// Arguments: micropython.mjs, the directory, the program. What it prints goes to standard output.
import { readFileSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
const [module, root, program] = process.argv.slice(2);
const { loadMicroPython } = await import(module);
const mp = await loadMicroPython({ heapsize: 110 * 1024, stdout: (line) => console.log(line), linebuffer: true });
function copy(from, to) {
  for (const name of readdirSync(from)) {
    const here = join(from, name), there = `${to}/${name}`;
    if (statSync(here).isDirectory()) { mp.FS.mkdir(there); copy(here, there); }
    else mp.FS.writeFile(there, readFileSync(here));
  }
}
copy(root, '');
await mp.runPythonAsync(readFileSync(program, 'utf8'));
process.exit(0);
