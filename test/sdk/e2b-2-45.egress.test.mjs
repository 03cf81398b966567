import * as sdk from 'e2b-2-45'
import { egress } from './egress.mjs'

egress('e2b-2-45', sdk)
