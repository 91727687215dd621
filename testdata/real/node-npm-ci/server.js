const loud = require('loud')
console.log(loud('ready'), process.env.NODE_ENV, process.getuid(), process.env.STARTED_BY)
