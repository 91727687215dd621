require('expecting')(require('loud')('a'), 'A!')
