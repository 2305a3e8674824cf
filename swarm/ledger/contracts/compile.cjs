// Reads solc's standard JSON on stdin, writes its standard JSON output on stdout; imports are found in node_modules.
const fs = require("fs");
const path = require("path");
const modules = path.join(process.argv[2], "node_modules");
const solc = require(path.join(modules, "solc"));

const findImport = (name) => {
  const file = path.join(modules, name);
  return fs.existsSync(file) ? { contents: fs.readFileSync(file, "utf8") } : { error: `${name} is not installed` };
};
const input = fs.readFileSync(0, "utf8");
const output = JSON.parse(solc.compile(input, { import: findImport }));
fs.writeSync(1, JSON.stringify({ ...output, compiler: solc.version() }));
