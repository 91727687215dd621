module.exports = () => { require('loud'); console.log('healthy') }
